"""The doctor finds what is broken, says what to do about it, and is never ended by it."""

import errno
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from findings import found_of, without

from natattn.cli.main import main
from natattn.doctor import examine, machine, storage, trial, versions
from natattn.doctor.findings import Finding, amount, examined
from natattn.doctor.show import show


def test_all_is_well_here(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "quick=true"]) == 0
    said = capsys.readouterr().out
    assert "natattn doctor: all is well" in said
    for name in ("Python", "torch", torch.__version__, "attention kernels", "bfloat16", "runs", "wandb"):
        assert name in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "said"), [(["fast=true"], "fast=true"), (["quick=maybe"], "quick=maybe")])
def test_wrong_arguments_end_with_one_line(arguments, said, capsys):
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_its_help_needs_nothing():
    heavy = ("torch", "pydantic", "hydra", "rich", "numpy")
    code = (
        "import sys; from natattn.cli.main import main; code = main(['doctor', '--help']);"
        f"loaded = [m for m in {heavy} if m in sys.modules]; assert not loaded, loaded; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: natattn doctor" in result.stdout


def test_it_trains_a_little_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.environ["NATATTN_CACHE"]
    found = found_of("training", trial.training)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["resuming"].found.startswith("to the same bits")
    assert not list(tmp_path.glob("natattn*"))  # torch keeps a folder of its own there
    assert os.environ["NATATTN_CACHE"] == before


@pytest.mark.parametrize(
    ("whole", "stopped", "broken", "said"),
    [
        ((2.0, 1.0), (2.0, 1.0), None, ""),
        ((2.0, 2.0), (2.0, 2.0), "both arms learn", "no: standard 2.000 → 2.000"),
        ((2.0, math.nan), (2.0, 1.0), "both arms learn", "nan"),
        ((2.0, 1.0), (2.0, 1.5), "resuming", "0.5"),
        ((2.0, 1.0), (2.0,), "resuming", "does not give the same losses"),
    ],
)
def test_training_that_goes_wrong_is_told(whole, stopped, broken, said, monkeypatch):
    series = {"whole": whole, "stopped": stopped}

    def losses(folder):
        arms = ("standard", "natural")
        values = series[folder.name]
        return [(step, f"{arm}/validation/loss", value) for step, value in enumerate(values) for arm in arms]

    monkeypatch.setattr(trial, "_train", lambda *arguments, **options: None)
    monkeypatch.setattr(trial, "_losses", losses)
    found = found_of("training", trial.training)
    assert [what for what, finding in found.items() if finding.state == "broken"] == ([broken] if broken else [])
    if broken:
        assert said in found[broken].found
        assert found[broken].advice


def test_a_run_that_fails_is_a_finding(monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trial, "_train", fail)
    (finding,) = examined("training", trial.training)
    assert finding.state == "broken"
    assert "No space left on device" in finding.found
    assert "\n" not in finding.found + finding.advice


def test_missing_old_and_broken_packages_are_told(monkeypatch):
    monkeypatch.setattr(
        versions, "_required", lambda: (">=3.99", ["matplotlib", "rich>=99", "not-a-package>=2", "pyyaml>=1"])
    )
    without(monkeypatch, "matplotlib")
    found = found_of("versions", versions.versions)
    assert {what: finding.state for what, finding in found.items()} == {
        "Python": "broken", "natattn": "ok", "matplotlib": "broken", "rich": "broken", "not-a-package": "broken",
        "pyyaml": "ok",
    }  # fmt: skip
    assert "cannot be imported" in found["matplotlib"].found
    assert found["matplotlib"].advice == 'python -m pip install "matplotlib" --force-reinstall'
    assert "outside >=99" in found["rich"].found
    assert found["not-a-package"].advice == 'python -m pip install "not-a-package>=2"'


def test_requirements_are_those_of_the_project():
    python, requirements = versions._required()
    assert python.startswith(">=3.11")
    assert any(each.startswith("torch>=") for each in requirements)
    assert not any(each.startswith("pytest") for each in requirements)


def test_without_torch_it_still_reports(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versions, "versions", lambda: [Finding("torch", "not installed", "broken", "install it")])
    for name in ("torch", "natattn.data.hub", "natattn.training.environment"):
        without(monkeypatch, name)
    assert main(["doctor", "quick=true"]) == 1
    said = capsys.readouterr()
    assert "broken: torch: not installed → install it" in said.out
    assert "broken: kernels: could not be examined" in said.out
    assert "Traceback" not in said.out + said.err


@pytest.mark.slow
def test_everything_with_compiling_and_training(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    findings = examine(quick=False)
    assert not [finding for finding in findings if finding.state == "broken"]
    assert {"compiling", "training"} <= {finding.part for finding in findings}


def test_without_rich_it_prints_plain_lines(monkeypatch):
    for name in ("rich", "rich.console", "rich.table", "rich.text"):
        without(monkeypatch, name)
    stream = io.StringIO()
    show([Finding("rich", "not installed", "broken", "install it", "versions")], stream)
    assert stream.getvalue().splitlines() == [
        "versions   broken rich: not installed",
        "broken: rich: not installed → install it",
        "natattn doctor: 1 broken",
    ]


def test_amounts_are_for_people():
    assert [amount(size) for size in (12, 2048, 5 << 20, 3 << 30)] == ["12 bytes", "2 KiB", "5 MiB", "3.0 GiB"]


def test_every_finding_that_is_not_well_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for finding in [*examined("machine", machine.machine), *examined("storage", storage.storage)]:
        assert bool(finding.advice) == (finding.state != "ok")
        assert json.dumps([finding.what, finding.found, finding.advice]).count("\\n") == 0


def test_a_checkout_that_is_not_installed_is_examined(monkeypatch):
    def version(name: str) -> str:
        if name == "natattn":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    installed = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    found = found_of("versions", versions.versions)
    assert (found["natattn"].state, found["natattn"].found) == ("ok", "a checkout that is not installed")


def test_without_packaging_versions_are_not_compared(monkeypatch):
    monkeypatch.setattr(versions, "_required", lambda: (">=3.99", []))
    without(monkeypatch, "packaging.specifiers")
    assert found_of("versions", versions.versions)["Python"].state == "ok"


def test_the_doctors_run_must_finish_and_leaves_the_environment_as_it_was(monkeypatch):
    import natattn.training.train

    monkeypatch.delenv("NATATTN_CACHE")
    monkeypatch.setattr(natattn.training.train, "train", lambda settings, folder: SimpleNamespace(outcome="diverged"))
    (finding,) = examined("training", trial.training)
    assert finding.state == "broken"
    assert "a run of 40 small steps ended with: diverged" in finding.found
    assert "NATATTN_CACHE" not in os.environ


def test_who_waits_is_told_how_long(monkeypatch, capsys):
    monkeypatch.setattr("natattn.doctor.examine", lambda quick: [])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["doctor", "quick=true"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["doctor"]) == 0
    assert "half a minute" in capsys.readouterr().err
