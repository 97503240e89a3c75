"""Runs that are killed, interrupted or damaged go on to the metrics of a run that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_metrics import lines, records

from natattn.cli.main import main
from natattn.cli.run import resumed_settings
from natattn.training.settings import compose_run


def _weights(folder: Path) -> dict[str, bytes]:
    return {
        path.parent.parent.name: path.read_bytes() for path in sorted(folder.glob("arms/*/model/model.safetensors"))
    }


def _command(folder: Path, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "natattn", "train", *overrides, f"hydra.run.dir={folder}"]


LONG = ["train.steps=60", "train.evaluate_every=7", "train.checkpoint_every=5", "model.dropout=0.1", "probe.every=3"]


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(["train", *tiny, *LONG, f"hydra.run.dir={folder}"]) == 0
    return folder


def _kill_when(process: subprocess.Popen, ready, timeout: float = 300.0) -> None:
    deadline = time.monotonic() + timeout
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("attempt", range(4))
def test_killed_at_any_moment_and_resumed_it_has_the_same_metrics(attempt, tiny, tmp_path, uninterrupted):
    """Killed at a random file size of the metrics, or while a checkpoint is being written, up to three times."""
    generator = random.Random(attempt)
    folder = tmp_path / "run"
    metrics, size = folder / "metrics.jsonl", (uninterrupted / "metrics.jsonl").stat().st_size
    command = _command(folder, [*tiny, *LONG])
    for _ in range(generator.randint(1, 2)):
        threshold = generator.randrange(int(0.8 * size))
        in_checkpoint = generator.random() < 0.5

        def ready(threshold=threshold, in_checkpoint=in_checkpoint):
            far_enough = metrics.exists() and metrics.stat().st_size >= threshold
            return far_enough and (not in_checkpoint or any(folder.glob("checkpoints/.writing-*")))

        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        _kill_when(process, ready)
        assert process.returncode == -signal.SIGKILL
        assert json.loads((folder / "run.json").read_text())["status"] == "running"
        command = [sys.executable, "-m", "natattn", "train", f"resume={folder}"]
    assert main(["train", f"resume={folder}"]) == 0
    assert records(folder) == records(uninterrupted)
    assert _weights(folder) == _weights(uninterrupted)


def test_ctrl_c_saves_and_exits_with_130_and_resumes_exactly(tiny, tmp_path, uninterrupted):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        _command(folder, [*tiny, *LONG]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 300
    while not any(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"resume={folder}" in errors
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert main(["train", f"resume={folder}"]) == 0
    assert sorted(map(str, records(folder))) == sorted(map(str, records(uninterrupted)))
    assert _weights(folder) == _weights(uninterrupted)


def test_a_damaged_newest_checkpoint_still_resumes_to_the_same_metrics(tiny, tmp_path, uninterrupted, capsys):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    newest = max(folder.glob("checkpoints/step-*"))
    victim = newest / "natural.optimizer.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    assert main(["train", f"resume={folder}"]) == 0
    assert newest.name in "".join(capsys.readouterr())
    assert records(folder) == records(uninterrupted)


def test_a_finished_run_says_so_and_does_nothing(uninterrupted, capsys):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert main(["train", f"resume={uninterrupted}"]) == 0
    assert "finished" in capsys.readouterr().out
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batch_size=8", "train.batch_size=8: the run has train.batch_size=4"),
        ("seed=1", "seed=1: the run has seed=0"),
        ("optim=muon", "optim."),
        ("train.steps=90", "train.steps=90: the run has train.steps=60"),
        ("size=pico", "size."),
    ],
)
def test_resuming_under_a_changed_configuration_is_refused(override, said, uninterrupted, capsys):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert main(["train", f"resume={uninterrupted}", override]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_constant_schedule_can_be_made_longer(tiny, tmp_path):
    constant = ["schedule=constant", "schedule.warmup_steps=2", f"hydra.run.dir={tmp_path / 'short'}"]
    base = [o for o in tiny if not o.startswith("schedule")]
    assert main(["train", *base, *constant]) == 0
    assert main(["train", f"resume={tmp_path / 'short'}", "train.steps=12", "train.max_seconds=100"]) == 0
    constant[-1] = f"hydra.run.dir={tmp_path / 'long'}"
    assert main(["train", *base, *constant, "train.steps=12"]) == 0
    assert _weights(tmp_path / "short") == _weights(tmp_path / "long")
    assert records(tmp_path / "short") == records(tmp_path / "long")


def test_the_time_limit_ends_a_run_that_can_go_on(tiny, tmp_path):
    folder = tmp_path / "run"
    limited = ["train.steps=100000", "train.max_seconds=0.5", "train.evaluate_every=50000"]
    assert main(["train", *tiny, *limited, f"hydra.run.dir={folder}"]) == 0
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "time_limit"
    last = max(step for step, _, name, _ in records(folder) if name == "validation/loss")
    assert 0 < last < 100000
    spent = max(line["seconds"] for line in lines(folder))
    assert main(["train", f"resume={folder}", f"train.max_seconds={spent + 1}"]) == 0
    assert max(step for step, _, name, _ in records(folder) if name == "validation/loss") > last


@pytest.mark.parametrize("several", [[], ["seeds=2"]], ids=["run", "seeds"])
def test_a_run_with_the_default_tracker_goes_on(several, tiny, tmp_path):
    """Into its folder wandb has put what it likes, links to its own logs among it."""
    overrides = [*(option for option in tiny if not option.startswith("tracker")), *several]
    folder = tmp_path / "run"
    assert main(["train", *overrides, "train.max_seconds=0.001", f"hydra.run.dir={folder}"]) == 0
    for each in [folder / "seed0", folder / "seed1"] if several else [folder]:
        assert main(["train", f"resume={each}", "train.max_seconds=null"]) == 0
        assert json.loads((each / "run.json").read_text())["status"] == "finished"
        assert len(list(each.glob("wandb/offline-run-*"))) == 2


def test_a_run_without_a_checkpoint_starts_over(tiny, tmp_path, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "run.json").unlink()
    assert main(["train", f"resume={folder}"]) == 0
    assert records(folder) == records(uninterrupted)


@pytest.mark.parametrize("damage", ["cut", "metrics gone", "checkpoints gone"])
def test_what_cannot_go_on_is_refused_and_left_as_it_was(damage, tiny, tmp_path, capsys):
    """A longer run is asked for of one that has ended; nothing of it may be changed by the refusal."""
    folder = tmp_path / "run"
    constant = [*(option for option in tiny if not option.startswith("schedule")), "schedule=constant"]
    assert main(["train", *constant, "schedule.warmup_steps=1", f"hydra.run.dir={folder}"]) == 0
    metrics = folder / "metrics.jsonl"
    if damage == "cut":
        os.truncate(metrics, metrics.stat().st_size // 2)
    elif damage == "metrics gone":
        metrics.unlink()
    else:
        shutil.rmtree(folder / "checkpoints")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["train", f"resume={folder}", "train.steps=500"]) == 2
    said = {"cut": "it was changed", "metrics gone": "is missing", "checkpoints gone": "no checkpoint to resume from"}
    assert said[damage] in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_second_process_on_a_run_folder_is_refused(tiny, tmp_path, uninterrupted, capsys):
    from natattn.training.run_folder import RunLock

    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    (folder / "run.json").unlink()
    with RunLock(folder):
        assert main(["train", f"resume={folder}"]) == 2
    assert "another process" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny, uninterrupted, capsys):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert main(["train", *tiny, f"hydra.run.dir={uninterrupted}"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "options", [["optim=muon", "train.accumulation_steps=2", "train.sampling=epochs"], ["probe.every=7"]], ids=str
)
def test_a_run_that_lost_its_last_steps_repeats_them(options, tiny, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", *tiny, *LONG, *options, f"hydra.run.dir={folder}"]) == 0
    expected = records(folder), _weights(folder)
    for checkpoint in sorted(folder.glob("checkpoints/step-*"))[1:]:
        shutil.rmtree(checkpoint)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert main(["train", f"resume={folder}"]) == 0
    assert (records(folder), _weights(folder)) == expected


def test_without_a_whole_checkpoint_nothing_is_lost(tiny, tmp_path, uninterrupted, capsys):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    (folder / "run.json").unlink()
    for manifest in folder.glob("checkpoints/step-*/manifest.json"):
        manifest.write_text("[]")
    before = (folder / "metrics.jsonl").read_bytes()
    assert main(["train", f"resume={folder}"]) == 2
    assert "checkpoints are damaged" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_resuming_on_other_text_is_refused(tiny, tmp_path, text_file, capsys):
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text())
    folder = tmp_path / "run"
    base = [o for o in tiny if not o.startswith("data.train")]
    constant = ["schedule=constant", "schedule.warmup_steps=2"]
    base = [o for o in base if not o.startswith("schedule")]
    assert main(["train", *base, *constant, f"data.train={text}", f"hydra.run.dir={folder}"]) == 0
    text.write_text(text_file.read_text().replace("energy", "entropy"))
    assert main(["train", f"resume={folder}", "train.steps=9"]) == 2
    assert "the data changed since the run began" in capsys.readouterr().err


def test_a_sweep_cannot_resume(uninterrupted, capsys):
    assert main(["train", "-m", f"resume={uninterrupted}"]) == 2
    assert "cannot be swept" in capsys.readouterr().err


def test_the_tracker_of_a_resumed_run_may_change_in_parts_or_as_a_whole():
    saved = compose_run([]).model_dump(mode="json")
    assert resumed_settings(saved, ["tracker=online"]).tracker.mode == "online"
    assert resumed_settings(saved, ["tracker=online"]).tracker.project == "natattn"
    assert resumed_settings(saved, ["tracker.project=mine"]).tracker.project == "mine"
    assert resumed_settings(saved, ["tracker=off"]).tracker.kind == "off"
