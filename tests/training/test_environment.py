"""environment.json: versions, commit and the environments of a resumed run."""

import json
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from natattn.training import environment
from natattn.training.environment import read_environment, write_environment


def test_the_environments_of_all_sittings_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    for _ in range(2):
        write_environment(tmp_path, torch.device("cpu"))
    assert "earlier_sittings" not in read_environment(tmp_path)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    write_environment(tmp_path, torch.device("cpu"))
    environment = read_environment(tmp_path)
    assert environment["variables"]["MKL_CBWR"] == "AVX2"
    assert [each["variables"]["MKL_CBWR"] for each in environment["earlier_sittings"]] == ["COMPATIBLE"]


def test_earlier_sittings_that_are_none_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    (tmp_path / "environment.json").write_text(json.dumps({"earlier_sittings": 3, "python": "3"}))
    write_environment(tmp_path, torch.device("cpu"))
    assert read_environment(tmp_path)["earlier_sittings"] == [{"python": "3"}]


@pytest.mark.parametrize(
    ("answers", "commit"),
    [
        ([(0, "abc\n"), (0, "")], "abc"),
        ([(0, "abc\n"), (0, " M natattn/cli/main.py\n")], "abc+changes"),
        ([(128, ""), (128, "")], None),  # such as a folder that git holds for someone else's
        ([FileNotFoundError(2, "git")], None),
        ([subprocess.TimeoutExpired("git", 5)], None),
    ],
)
def test_the_commit_is_known_only_where_git_says_it(answers, commit, tmp_path, monkeypatch):
    waiting = list(answers)

    def run(*arguments, **options):
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(returncode=answer[0], stdout=answer[1])

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "natattn" / "training" / "environment.py"))
    monkeypatch.setattr(subprocess, "run", run)
    assert environment._git_commit() is None  # no checkout: git is not asked
    assert waiting == answers
    (tmp_path / ".git").mkdir()
    assert environment._git_commit() == commit


def test_where_the_system_does_not_name_its_processor_python_may(monkeypatch):
    def absent(path, **options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", absent)
    for said, name in (("arm", "arm"), ("", None)):
        monkeypatch.setattr("platform.processor", lambda said=said: said)
        assert environment.processor() == name


def test_a_package_that_is_not_installed_has_no_version():
    assert environment._version("not-a-package") is None
    assert environment._version("torch") == metadata.version("torch")
