"""`natattn doctor` reports every problem in one line with advice, and no problem ends it."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from natattn.cli import doctor
from natattn.cli.main import main


def findings(check) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in check()}


def test_this_installation_has_no_problem(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = os.environ["NATATTN_CACHE"]
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("natattn doctor: no problems found")
    assert f"ok: torch: {torch.__version__.partition('+')[0]}" in "\n".join(lines)
    assert {line.split(": ")[1] for line in lines[:-1]} >= {"Python", "transformers", "threads", "outputs", "training"}
    assert os.environ["NATATTN_CACHE"] == cache
    assert not list(tmp_path.glob("natattn*")) + list(tmp_path.glob("outputs"))


@pytest.mark.parametrize("argument", ["fast=true", "quick=maybe"])
def test_unknown_arguments_are_one_line(argument, capsys):
    assert main(["doctor", argument]) == 2
    assert capsys.readouterr().err == f"natattn: {argument}: unknown argument. Use quick=true or quick=false.\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from natattn.cli.main import main; main(['doctor', '--help']);"
        "assert not {'torch', 'pydantic', 'hydra', 'rich', 'numpy'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: natattn doctor" in result.stdout


def test_missing_old_and_broken_packages(monkeypatch):
    required = [">=3.99", ["matplotlib", "rich>=99", "not-a-package>=2", "pyyaml>=1"]]
    monkeypatch.setattr(doctor, "_requirements", lambda: required)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = findings(doctor.versions)
    assert [name for name, finding in found.items() if finding.state == "ok"] == ["pyyaml"]
    assert found["Python"].advice == "create an environment with Python >=3.99"
    assert "cannot be imported" in found["matplotlib"].value
    assert found["matplotlib"].advice == 'python -m pip install "matplotlib" --force-reinstall'
    assert found["rich"].value.endswith("is not >=99")
    assert found["not-a-package"].advice == 'python -m pip install "not-a-package>=2"'


def test_without_torch_the_other_checks_still_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_requirements", lambda: ("", []))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor", "quick=true"]) == 1
    captured = capsys.readouterr()
    assert "broken: devices: the check failed: " in captured.out
    assert "ok: outputs: writable" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cuda, state in ((None, "note"), ("13.0", "broken")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        found = findings(doctor.devices)
        assert (found["GPU"].state, found["threads"].state) == (state, "note")
        assert found["GPU"].advice
        assert "OMP_NUM_THREADS=" in found["threads"].advice


def test_folders_without_permission_or_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("outputs").symlink_to("nowhere")
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    outputs, cache = doctor.folders()
    assert (outputs.state, cache.state) == ("broken", "broken")
    assert "hydra.run.dir" in outputs.advice
    assert cache.value == "only 0.0 GiB free"

    def read_only(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert [finding.value for finding in doctor.folders()] == 2 * ["cannot be written to: Read-only file system"]


def test_failing_training_is_a_finding(monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("natattn.training.train.train", fail)
    (finding,) = (finding for finding in doctor.examine(quick=False) if finding.name == "training")
    assert finding.state == "broken"
    assert "No space left on device" in str(finding)
