"""Two finished runs are identical, equal within rounding, or different; then the report lists what differs."""

import dataclasses
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from natattn.analysis.run_comparison import compare_runs, print_comparison
from natattn.cli.main import main


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *tiny, "size.n_layer=1", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_metric(folder: Path, name: str, factor: float, step: int) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if (record["name"], record["step"], record["arm"]) == (name, step, "natural"):
            value = record["value"] * factor
            record["value"] = value if math.isfinite(value) else str(value)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def without_training_loss(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"train/loss"' not in line))


def printed(comparison) -> str:
    stream = io.StringIO()
    print_comparison(comparison, stream=stream)
    return stream.getvalue()


def test_the_report_of_two_finished_runs_compares_them(finished, copied, tiny, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["train", *tiny, "size.n_layer=1", f"hydra.run.dir={other}"]) == 0
    capsys.readouterr()
    page = f"output={tmp_path / 'page.html'}"
    assert main(["report", str(finished), str(other), page]) == 0
    text = capsys.readouterr().out
    assert f"{finished} and {other}: identical to the bit (" in text
    assert "and the weights of 2 arms)" in text
    change_json(copied / "run.json", status="time_limit")
    assert main(["report", str(finished), str(copied), page]) == 0
    assert "identical" not in capsys.readouterr().out
    change_json(copied / "run.json", status="finished")
    (copied / "arms" / "natural" / "model" / "model.safetensors").write_bytes(b"damaged")
    assert main(["report", str(finished), str(copied), page]) == 0
    assert "the two runs cannot be compared in detail" in capsys.readouterr().out


def test_differing_settings_and_environments_are_listed(finished, copied):
    environment = json.loads((copied / "environment.json").read_text())
    packages = environment["packages"] | {"torch": "2.11.0"}
    # Values come from files and may contain the markup of a terminal library.
    change_json(copied / "environment.json", packages=packages, variables={"ONE": "[bold]x[/red]", "TWO": ":smile:"})
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace("clip_norm: 1.0", "clip_norm: 2.0"))
    change_metric(copied, "validation/loss", 1.001, step=3)
    comparison = compare_runs(copied, finished)
    changes = {change.name: (change.first, change.second) for change in comparison.changes}
    assert changes["packages.torch"] == ("2.11.0", torch.__version__)
    assert changes["train.clip_norm"] == (2.0, 1.0)
    text = printed(comparison)
    assert "DIFFERENT: 1 of " in text
    assert "first difference: arm natural, step 3, validation/loss" in text
    assert "times what rounding may cause: arm natural, step 3, validation/loss" in text
    assert "[bold]x[/red]" in text
    assert ":smile:" in text


@pytest.mark.parametrize(
    ("factor", "step", "name", "verdict"),
    [
        (1 + 4e-6, 3, "validation/loss", "rounding"),
        (1 + 4e-6, 0, "validation/loss", "different"),  # before training nothing can amplify a difference
        (1 + 4e-5, 3, "validation/loss", "different"),
        (1 + 4e-5, 3, "attention/layer_0/entropy", "rounding"),
        (1.01, 3, "attention/layer_0/entropy", "different"),
        (float("nan"), 3, "validation/loss", "different"),
    ],
)
def test_rounding_is_separated_from_a_difference_by_its_size(factor, step, name, verdict, finished, copied):
    change_metric(copied, name, factor, step)
    comparison = compare_runs(finished, copied)
    assert comparison.verdict == verdict
    assert str(comparison.largest) == f"arm natural, step {step}, {name}"
    assert comparison.largest.relative == pytest.approx(abs(factor - 1), rel=1e-2) or factor != factor
    assert len(comparison.differences) == 1


def test_missing_metrics_and_other_weights_are_reported(finished, copied):
    weights = copied / "arms" / "natural" / "model" / "model.safetensors"
    shutil.copy(copied / "arms" / "standard" / "model" / "model.safetensors", weights)
    comparison = compare_runs(finished, copied)
    assert 0 < comparison.weights["natural"] < 0.1
    assert comparison.weights["standard"] == 0
    assert comparison.verdict == "rounding"
    assert "settings and environment are the same" in printed(comparison)
    without_training_loss(copied)
    save_file({"other": torch.zeros(2)}, weights)
    (copied / "arms" / "standard" / "model" / "model.safetensors").unlink()
    change_json(copied / "environment.json", earlier_sittings=[{"python": "3"}])
    comparison = compare_runs(copied, finished)
    assert comparison.verdict == "different"
    assert comparison.weights == {"natural": math.inf}
    assert {name for _, _, name in comparison.missing} == {"train/loss"}
    assert any(change.name.startswith("earlier environments") for change in comparison.changes)
    text = printed(dataclasses.replace(comparison, left_out=3, not_recorded=("source", "cuda")))
    assert f"{len(comparison.missing)} metrics in only one run, such as arm " in text
    assert "not compared: 3 metrics of evaluations at which a run was stopped" in text
    assert "not recorded for the first run: source, cuda" in text


def test_runs_with_older_records_are_compared(finished, copied):
    environment = json.loads((copied / "environment.json").read_text())
    for name in ("variables", "processor", "source"):
        del environment[name]
    (copied / "environment.json").write_text(json.dumps(environment))
    comparison = compare_runs(copied, finished)
    assert not comparison.changes
    assert set(comparison.not_recorded) == {"processor", "source"}


def test_folders_with_the_retired_key_repeat_can_be_resumed(copied, capsys):
    path = copied / "config.yaml"
    path.write_text(path.read_text() + "repeat: null\n")
    assert main(["train", f"resume={copied}"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_an_extended_run_is_identical_to_one_in_one_go(tiny, tmp_path):
    base = [option for option in tiny if not option.startswith("schedule")] + ["size.n_layer=1", "reference=none"]
    constant = ["schedule=constant", "schedule.warmup_steps=2"]
    folders = tmp_path / "extended", tmp_path / "whole"
    assert main(["train", *base, *constant, "train.steps=4", f"hydra.run.dir={folders[0]}"]) == 0
    assert main(["train", f"resume={folders[0]}", "train.steps=7"]) == 0
    assert main(["train", *base, *constant, "train.steps=7", f"hydra.run.dir={folders[1]}"]) == 0
    comparison = compare_runs(*folders)
    assert comparison.verdict == "identical"
    assert comparison.left_out > 0


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["aif", "natural_muon", "fisher_adam"])
def test_another_number_of_threads_is_rounding_and_another_seed_is_not(optim, tmp_path):
    options = ["size=pico", "tokenizer=byte", "data=grammar", "tracker=off", f"optim={optim}", "train.steps=20"]
    options += ["train.evaluate_every=10", "train.device=cpu", "train.max_seconds=null"]
    for name, threads, seed in (("one", "1", "0"), ("two", "2", "0"), ("other", "1", "1")):
        command = [sys.executable, "-m", "natattn", "train", *options, f"seed={seed}"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        run = [*command, f"hydra.run.dir={tmp_path / name}"]
        subprocess.run(run, check=True, capture_output=True, env=environment)
    comparison = compare_runs(tmp_path / "one", tmp_path / "two")
    assert comparison.verdict == "rounding", (comparison.worst, comparison.missing)
    assert {change.name: (change.first, change.second) for change in comparison.changes}["threads"] == (1, 2)
    assert compare_runs(tmp_path / "one", tmp_path / "other").verdict == "different"
