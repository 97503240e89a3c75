"""Signals, clocks, other processes, and files and processes that go away: in each case one line, and nothing lost."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forking import ForkServer
from run_metrics import lines, records
from wholeness import Undisturbed, check_whole, leftovers, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def options(tmp_path: Path, undisturbed: Undisturbed) -> dict[str, Any]:
    return {"log": tmp_path / "log", "cwd": tmp_path, "NATATTN_CACHE": str(undisturbed.cache)}


def stderr(tmp_path: Path) -> str:
    said = (tmp_path / "log" / "stderr.txt").read_text()
    assert "Traceback" not in said, said
    return said


def wait_for(path: Path, text: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{path} does not say {text!r}"
        time.sleep(0.05)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT]], ids=str)
@pytest.mark.parametrize(
    ("stage", "number"),
    [("prepare", 9), ("training", 11), ("evaluation", 2), ("evaluation", 6), ("evaluation", 21), ("checkpoint", 20)],
    ids=str,
)
def test_a_signal_stops_and_saves(
    stage: str,
    number: int,
    signals: list[int],
    server: ForkServer,
    small: list[str],
    undisturbed: Undisturbed,
    options: dict[str, Any],
    tmp_path: Path,
):
    """During evaluation the one at hand is given up, and made again by who goes on."""
    options["NATATTN_CACHE"] = str(tmp_path / "cache" if stage == "prepare" else undisturbed.cache)
    signals = [int(each) for each in signals]
    fault = {"kind": "signalled", "roots": [str(tmp_path)], "stage": stage, "number": number, "signals": signals}
    assert server.run(["train", *small, "hydra.run.dir=run"], fault=fault, **options) == 128 + signals[0]
    said = stderr(tmp_path)
    if stage == "prepare":
        assert said == "natattn: interrupted; start it again: there is nothing to resume yet\n"
        assert not (tmp_path / "run").exists()
        command = [*small, "hydra.run.dir=run"]
    else:
        assert said == "natattn: interrupted; resume with: natattn train resume=run\n"
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
        assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
        command = ["resume=run"]
    check_whole(tmp_path)
    assert leftovers(tmp_path) == []
    assert server.run(["train", *command], **options) == 0
    assert records(tmp_path / "run") == records(undisturbed.folder)
    assert weights(tmp_path / "run") == weights(undisturbed.folder)


def test_sigterm_while_compiling_ends_soon(
    server: ForkServer, small: list[str], options: dict[str, Any], tmp_path: Path
):
    pytest.importorskip("torch._inductor")
    fault = {"kind": "signalled_later", "roots": [str(tmp_path)], "stage": "training", "number": 1, "delay": 1.0}
    command = ["train", *small, "train.compile=true", "hydra.run.dir=run"]
    started = time.monotonic()
    assert server.run(command, fault=fault, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"), **options) == 143
    assert time.monotonic() - started < 40, "a compilation of two models takes longer"
    assert stderr(tmp_path).endswith("natattn: interrupted; resume with: natattn train resume=run\n")
    last = max(step for step, _, _, _ in records(tmp_path / "run"))
    assert last == 0


def test_the_end_of_a_run_is_not_broken_off(
    server: ForkServer, small: list[str], undisturbed: Undisturbed, options: dict[str, Any], tmp_path: Path
):
    fault = {"kind": "signalled", "roots": [str(tmp_path)], "stage": "export", "number": 7, "signals": [15, 15]}
    assert server.run(["train", *small, "hydra.run.dir=run"], fault=fault, **options) == 143
    assert stderr(tmp_path).splitlines()[-1] == "natattn: stopped by SIGTERM when all was done"
    assert weights(tmp_path / "run") == weights(undisturbed.folder)


def test_sigterm_ends_a_study_in_a_line(server: ForkServer, options: dict[str, Any], tmp_path: Path):
    fault = {"kind": "signalled", "roots": [str(tmp_path)], "stage": "training", "number": 3, "signals": [15]}
    assert server.run(["reproduce", "study=theorems", "budget=smoke"], fault=fault, **options) == 143
    assert stderr(tmp_path).splitlines()[-1] == "natattn: stopped by SIGTERM"


def test_a_clock_that_runs_backwards(
    server: ForkServer, small: list[str], undisturbed: Undisturbed, options: dict[str, Any], tmp_path: Path
):
    fault = {"kind": "clock_runs_backwards"}
    assert server.run(["train", *small, "hydra.run.dir=run"], fault=fault, **options) == 0
    assert stderr(tmp_path) == ""
    assert records(tmp_path / "run") == records(undisturbed.folder)
    written = lines(tmp_path / "run")
    seconds = [line["seconds"] for line in written]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert all(line["value"] >= 0 for line in written if line["name"].startswith("time/"))
    assert server.run(["report", "run"], fault=fault, **options) == 0


def test_two_processes_prepare_the_same_tokens_once(
    server: ForkServer, small: list[str], undisturbed: Undisturbed, options: dict[str, Any], tmp_path: Path
):
    """The first stands still in the middle of it: the second waits, says so, and goes on when the first has done it."""
    options["NATATTN_CACHE"] = str(tmp_path / "cache")
    second = options | {"log": tmp_path / "second"}
    counting = {"kind": "counted", "roots": [str(tmp_path / "cache")], "counts": str(tmp_path / "counts")}
    one = _stopped(server, "one", "prepare", 8, small, options, tmp_path)
    two = server.start(["train", *small, "hydra.run.dir=two"], fault=counting, **second)
    wait_for(tmp_path / "second" / "stderr.txt", "another process prepares the same data; waiting for it")
    os.kill(one, signal.SIGCONT)
    assert server.wait(one) == 0
    assert server.wait(two) == 0
    assert records(tmp_path / "one") == records(tmp_path / "two") == records(undisturbed.folder)
    moments = (tmp_path / "counts").read_text().split()
    assert moments.count("prepare") < 8  # folders and locks alone: whoever makes all has three times as many
    written = list((tmp_path / "cache").rglob("*.json"))
    assert len(written) == 3
    assert leftovers(tmp_path) == []


def test_who_waits_for_a_process_that_dies_makes_the_tokens_itself(
    server: ForkServer, small: list[str], undisturbed: Undisturbed, options: dict[str, Any], tmp_path: Path
):
    options["NATATTN_CACHE"] = str(tmp_path / "cache")
    second = options | {"log": tmp_path / "second"}
    one = _stopped(server, "one", "prepare", 8, small, options, tmp_path)
    two = server.start(["train", *small, "hydra.run.dir=two"], **second)
    wait_for(tmp_path / "second" / "stderr.txt", "waiting for it")
    os.kill(one, signal.SIGKILL)
    assert server.wait(one) == -signal.SIGKILL
    assert server.wait(two) == 0
    assert records(tmp_path / "two") == records(undisturbed.folder)
    assert leftovers(tmp_path / "cache") == []


def _stopped(
    server: ForkServer, run: str, stage: str, number: int, small: list[str], options: dict[str, Any], place: Path
) -> int:
    """Start a run and return its process, which stands still at the numbered event of a stage."""
    signals = [int(signal.SIGSTOP)]
    fault = {"kind": "signalled", "roots": [str(place)], "stage": stage, "number": number, "signals": signals}
    pid = server.start(["train", *small, f"hydra.run.dir={run}"], fault=fault, **options)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return pid


def test_two_processes_on_one_folder(
    server: ForkServer, small: list[str], undisturbed: Undisturbed, options: dict[str, Any], tmp_path: Path
):
    one = _stopped(server, "run", "training", 9, small, options, tmp_path)
    assert server.run(["train", "resume=run"], **options | {"log": tmp_path / "second"}) == 2
    said = (tmp_path / "second" / "stderr.txt").read_text()
    assert said == "natattn: run: another process is training in this run folder\n"
    os.kill(one, signal.SIGCONT)
    assert server.wait(one) == 0
    assert records(tmp_path / "run") == records(undisturbed.folder)


@pytest.mark.parametrize(("stage", "number"), [("prepare", 3), ("prepare", 14), ("prepare", 25)], ids=str)
def test_the_text_is_deleted_while_it_is_prepared(
    stage: str,
    number: int,
    server: ForkServer,
    small: list[str],
    options: dict[str, Any],
    text_file: Path,
    tmp_path: Path,
):
    text = tmp_path / "text.txt"
    shutil.copy(text_file, text)
    options["NATATTN_CACHE"] = str(tmp_path / "cache")
    fault = {
        "kind": "commanded",
        "roots": [str(tmp_path / "cache")],
        "stage": stage,
        "number": number,
        "command": f"rm {text}",
    }
    command = ["train", *small, f"data.train={text}", "hydra.run.dir=run"]
    assert server.run(command, fault=fault, **options) == 2
    said = stderr(tmp_path)
    assert said.startswith("natattn: ")
    assert said.count("\n") == 1
    assert str(text) in said
    assert not (tmp_path / "run").exists()
    shutil.copy(text_file, text)
    assert server.run(command, **options) == 0


def test_text_and_tokens_are_deleted_while_it_trains(
    server: ForkServer,
    small: list[str],
    undisturbed: Undisturbed,
    options: dict[str, Any],
    text_file: Path,
    tmp_path: Path,
):
    """Both are held open. Who goes on without the text says that it is not there."""
    text = tmp_path / "text.txt"
    shutil.copy(text_file, text)
    options["NATATTN_CACHE"] = str(tmp_path / "cache")
    command = f"rm -r {text} {tmp_path / 'cache'}"
    fault = {"kind": "commanded", "roots": [str(tmp_path)], "stage": "training", "number": 5, "command": command}
    arguments = ["train", *small, f"data.train={text}"]
    assert server.run([*arguments, "hydra.run.dir=run"], fault=fault, **options) == 0
    assert records(tmp_path / "run") == records(undisturbed.folder)
    shutil.copy(text_file, text)
    fault = {"kind": "signalled", "roots": [str(tmp_path)], "stage": "training", "number": 9, "signals": [15]}
    assert server.run([*arguments, "hydra.run.dir=other"], fault=fault, **options) == 143
    text.unlink()
    assert server.run(["train", "resume=other"], **options) == 2
    assert str(text) in stderr(tmp_path)
    shutil.copy(text_file, text)
    assert server.run(["train", "resume=other"], **options) == 0
    assert records(tmp_path / "other") == records(undisturbed.folder)


def test_wandb_s_process_is_killed(
    server: ForkServer, small: list[str], undisturbed: Undisturbed, options: dict[str, Any], tmp_path: Path
):
    command = "kill -9 $(pgrep -P $PPID -f wandb_process[.]py)"
    fault = {"kind": "commanded", "roots": [str(tmp_path)], "stage": "training", "number": 9, "command": command}
    assert server.run(["train", *small, "tracker=offline", "hydra.run.dir=run"], fault=fault, **options) == 0
    assert (
        "warning: wandb failed: its process ended; training continues" in (tmp_path / "log" / "stdout.txt").read_text()
    )
    assert stderr(tmp_path) == ""
    assert records(tmp_path / "run") == records(undisturbed.folder)


def test_a_worker_of_a_sweep_dies(server: ForkServer, small: list[str], options: dict[str, Any], tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    # The workers are other processes, so that the fault is in what they read at their start.
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(DYING)
    options |= {"PYTHONPATH": f"{tmp_path / 'modules'}:{os.environ.get('PYTHONPATH', '')}", "NATATTN_DIES": "1"}
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    assert server.run(["train", "-m", *small, "seed=0,1", *launcher], **options) == 1
    assert "natattn: a worker process was killed" in stderr(tmp_path)


DYING = """
import os, sys
if os.environ.get("NATATTN_DIES") and "loky" in " ".join(sys.orig_argv):
    def watch(event, arguments):
        if event == "open" and str(arguments[0]).endswith("metrics.jsonl"):
            os.kill(os.getpid(), 9)
    sys.addaudithook(watch)
"""
