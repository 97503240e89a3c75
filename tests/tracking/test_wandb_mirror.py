import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from natattn.tracking import Record
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror

SETTINGS = WandbSettings(
    kind="wandb",
    mode="offline",
    project="natattn",
    entity=None,
    group=None,
    name=None,
    tags=("test",),
    timeout_seconds=30.0,  # less than wait_for waits: a service that dies while it begins is noticed by it alone
)
RECORDS = [Record(1, arm, "train/loss", 7.5, 0.25) for arm in ("standard", "natural")]
RECORDS += [Record(1, None, "time/peak_memory_bytes", 2.0**30, 0.25), Record(2, "natural", "train/loss", 7.0, 0.5)]

OpenMirror = Callable[..., WandbMirror]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def open_mirror(tmp_path: Path, warnings: list[str]) -> OpenMirror:
    def make(run_id: str = "run0", **changes: Any) -> WandbMirror:
        settings = SETTINGS.model_copy(update=changes)
        config = {"seed": 0, "optim": {"name": "aif"}}
        where: dict[str, Any] = {"folder": tmp_path, "config": config, "group": "sweep", "name": run_id}
        return WandbMirror(settings, **where, run_id=run_id, warn=warnings.append)

    return make


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts another module in the place of wandb, for the process that imports it."""

    def make(source: str) -> None:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "wandb.py").write_text(dedent(source))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return make


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def log_until_warned(mirror: WandbMirror, warnings: list[str]) -> bool:
    def warned() -> bool:
        mirror.log(RECORDS)
        return bool(warnings)

    return wait_for(warned)


def children(process_id: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(process_id)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def mirror_process(mirror: WandbMirror) -> int:
    assert mirror._child is not None
    return mirror._child._process.pid


def test_two_runs_of_one_process_are_two_offline_runs(
    tmp_path: Path, open_mirror: OpenMirror, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    for run_id in ("first", "second"):
        with open_mirror(run_id) as mirror:
            mirror.log(RECORDS)
            mirror.summarise({"best_validation_loss": 6.5})
    assert warnings == []
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == ["run-first.wandb", "run-second.wandb"]
    for word in (
        b"standard/train/loss",
        b"natural/train/loss",
        b"time/peak_memory_bytes",
        b"best_validation_loss",
        b"aif",
    ):
        assert word in files[0].read_bytes()
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in everything if key.encode() in path.read_bytes()]


@pytest.mark.skipif(not os.path.exists("/usr/bin/pgrep"), reason="needs pgrep to find wandb's service")
def test_a_killed_service_costs_one_warning(open_mirror: OpenMirror, warnings: list[str]) -> None:
    with open_mirror() as mirror:
        process_id = mirror_process(mirror)
        assert wait_for(lambda: children(process_id))
        mirror.log(RECORDS)
        for service in children(process_id):
            os.kill(service, signal.SIGKILL)
        assert log_until_warned(mirror, warnings)
        mirror.log(RECORDS)
        mirror.summarise({"x": 1.0})
    assert len(warnings) == 1
    assert warnings[0].startswith("wandb failed: ")
    assert "training continues" in warnings[0]


def test_a_killed_process_costs_one_warning(open_mirror: OpenMirror, warnings: list[str]) -> None:
    with open_mirror() as mirror:
        os.kill(mirror_process(mirror), signal.SIGKILL)
        assert log_until_warned(mirror, warnings)
        mirror.flush()
    assert warnings == ["wandb failed: its process ended; training continues; its metrics are in metrics.jsonl"]


def test_nothing_is_left_running_or_in_the_temporary_folder(
    open_mirror: OpenMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with open_mirror() as mirror:
        process_id = mirror_process(mirror)
        assert os.getsid(process_id) != os.getsid(0)  # Ctrl-C does not reach it
        mirror.log(RECORDS)
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    assert not list((tmp_path / "tmp").iterdir())


def test_wandb_that_cannot_be_imported(
    open_mirror: OpenMirror, warnings: list[str], fake_wandb: Callable[[str], None]
) -> None:
    fake_wandb("raise ImportError('no such library')")
    with open_mirror() as mirror:
        assert log_until_warned(mirror, warnings)
    assert len(warnings) == 1
    assert "ImportError: no such library" in warnings[0]


FAKE_RUN = """
    import time

    class Run:
        class settings:
            sync_dir = "."
        summary = {}
        def define_metric(self, *arguments, **options): pass
        def log(self, row): pass
        def finish(self, exit_code): pass

    Settings = dict
    def init(**options): return Run()
    def teardown(): pass
"""


def test_wandb_that_hangs_at_the_start(
    open_mirror: OpenMirror, warnings: list[str], fake_wandb: Callable[[str], None]
) -> None:
    fake_wandb(FAKE_RUN + "    init = lambda **options: time.sleep(600)\n")
    with open_mirror(timeout_seconds=0.5) as mirror:
        assert log_until_warned(mirror, warnings)
    assert warnings == ["wandb did not start within 0.5 s; training continues; its metrics are in metrics.jsonl"]


def test_wandb_that_hangs_at_the_end(
    open_mirror: OpenMirror, warnings: list[str], fake_wandb: Callable[[str], None]
) -> None:
    fake_wandb(FAKE_RUN + "    Run.finish = lambda self, exit_code: time.sleep(600)\n")
    with open_mirror(timeout_seconds=2.0) as mirror:
        mirror.log(RECORDS)
    assert len(warnings) == 1
    assert "did not finish within 2 s" in warnings[0]


def test_wandb_that_hangs_half_way(
    open_mirror: OpenMirror, warnings: list[str], fake_wandb: Callable[[str], None]
) -> None:
    fake_wandb(FAKE_RUN + "    Run.log = lambda self, row: time.sleep(600)\n")
    with open_mirror() as mirror:
        for _ in range(5000):
            mirror.log(RECORDS)
    assert warnings == ["wandb hangs; training continues; its metrics are in metrics.jsonl"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, open_mirror: OpenMirror, warnings: list[str]) -> None:
    (tmp_path / "wandb").touch()
    with open_mirror() as mirror:
        mirror.log(RECORDS)
    assert len(warnings) == 1
    assert "Not a directory" in warnings[0]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process or its children may grow beyond 32 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, hard))
    try:
        yield
    finally:  # before pytest writes its report: that may be to a file as well
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_one_warning(open_mirror: OpenMirror, warnings: list[str]) -> None:
    with full_disk(), open_mirror() as mirror:
        warned = log_until_warned(mirror, warnings)
    assert warned
    assert warnings == ["wandb failed: File too large; training continues; its metrics are in metrics.jsonl"]


def test_an_error_in_training_passes_through(open_mirror: OpenMirror, warnings: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt), open_mirror():
        raise KeyboardInterrupt
    assert warnings == []


def test_rows_merge_a_step_and_keep_what_is_not_finite(
    tmp_path: Path, open_mirror: OpenMirror, fake_wandb: Callable[[str], None]
) -> None:
    seen = tmp_path / "seen.jsonl"
    fake_wandb(
        FAKE_RUN
        + f"    import json\n    Run.log = lambda self, row: print(json.dumps(row), file=open({str(seen)!r}, 'a'))\n"
    )
    with open_mirror() as mirror:
        mirror.log([*RECORDS, Record(2, "natural", "train/loss", float("inf"), 0.75)])
    assert [json.loads(line) for line in seen.read_text().splitlines()] == [
        {
            "step": 1,
            "standard/train/loss": 7.5,
            "natural/train/loss": 7.5,
            "time/peak_memory_bytes": 2.0**30,
            "seconds": 0.25,
        },
        {"step": 2, "natural/train/loss": float("inf"), "seconds": 0.75},
    ]


def test_how_the_run_is_described_to_wandb(
    tmp_path: Path, open_mirror: OpenMirror, fake_wandb: Callable[[str], None]
) -> None:
    seen = tmp_path / "seen.json"
    fake_wandb(
        FAKE_RUN
        + f"""
    def init(settings, **options):
        import json, os
        options["api_key"] = os.environ.get("WANDB_API_KEY")
        json.dump(options, open({str(seen)!r}, "w"))
        return Run()
"""
    )
    with open_mirror("run7"):
        pass
    described = json.loads(seen.read_text())
    assert described["config"] == {"seed": 0, "optim": {"name": "aif"}}
    assert {key: described[key] for key in ("id", "name", "group", "mode", "tags", "dir", "resume", "api_key")} == {
        "id": "run7",
        "name": "run7",
        "group": "sweep",
        "mode": "offline",
        "tags": ["test"],
        "dir": str(tmp_path),
        "resume": None,
        "api_key": None,
    }


def test_a_killed_training_still_leaves_a_finished_run(tmp_path: Path) -> None:
    script = f"""
import os, signal, time
from pathlib import Path
from natattn.tracking import Record
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror
settings = WandbSettings.model_validate_json({SETTINGS.model_dump_json()!r})
with WandbMirror(settings, folder=Path({str(tmp_path)!r}), config={{}}, group=None, name="x", run_id="x") as mirror:
    mirror.log([Record(1, "natural", "train/loss", 1.0, 0.0)])
    while not list(Path({str(tmp_path)!r}).glob("wandb/*/*.wandb")):
        time.sleep(0.02)
    print(mirror._child._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    process_id = int(killed.stdout)

    def ended() -> bool:
        try:
            return Path(f"/proc/{process_id}/stat").read_text().split()[2] == "Z"
        except OSError:
            return True

    assert wait_for(ended)
    assert b"natural/train/loss" in next(tmp_path.glob("wandb/*/*.wandb")).read_bytes()
