"""Disks that are full or may not be written to, at every place where something is written.

Each part that is tested is a small file system of its own, mounted where that part will be.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forking import ForkServer
from run_metrics import records
from wholeness import Undisturbed, check_whole, leftovers, weights

pytestmark = pytest.mark.slow

PAGE = 4096
Disk = Callable[[Path, str], None]


@pytest.fixture
def small_disk() -> Iterator[Disk]:
    """Mounts an empty file system of a size at a folder."""
    mounted: list[Path] = []

    def mount(path: Path, size: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")
        mounted.append(path)

    yield mount
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


def one_line(log: Path) -> str:
    """What was said on standard error, which is one line of ours."""
    said = (log / "stderr.txt").read_text()
    assert said.startswith("natattn: "), said
    assert said.count("\n") == 1, said
    return said


# {what is full: (the folder that is a disk of its own, its size at first; of checkpoints in units of one)}
FULL = {
    "checkpoint": ("checkpoints", 1.7),
    "first checkpoint": ("checkpoints", 0.5),
    "export": ("arms", 0.1),
}


@pytest.mark.parametrize(("part", "size"), FULL.values(), ids=FULL)
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    part: str,
    size: float,
    small_disk: Disk,
    server: ForkServer,
    small: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
):
    folder = tmp_path / "run"
    one = max(undisturbed.folder.glob("checkpoints/step-*"))
    taken = sum(-(-file.stat().st_size // PAGE) * PAGE for file in one.iterdir())
    small_disk(folder / part, str(int(size * taken)))
    options = {"log": tmp_path / "log", "cwd": tmp_path, "NATATTN_CACHE": str(undisturbed.cache)}
    assert server.run(["train", *small, f"hydra.run.dir={folder}"], **options) == 1
    said = one_line(tmp_path / "log")
    assert f"{Path('run') / part}/" in said
    assert "No space left on device; free space and resume with natattn train resume=run\n" in said
    check_whole(folder)
    kept = sorted(path.name for path in folder.glob("checkpoints/step-*"))
    assert leftovers(folder) == []
    assert len(kept) == {1.7: 1, 0.5: 0, 0.1: 2}[size]
    assert server.run(["train", "resume=run"], **options) == 1, "it is still full"
    assert sorted(path.name for path in folder.glob("checkpoints/step-*")) == kept
    remount(folder / part, "size=64m")
    assert server.run(["train", "resume=run"], **options) == 0, (tmp_path / "log" / "stderr.txt").read_text()
    assert records(folder) == records(undisturbed.folder)
    assert weights(folder) == weights(undisturbed.folder)
    check_whole(folder)
    assert leftovers(folder) == []


def test_no_room_for_metrics(
    request: pytest.FixtureRequest,
    small_disk: Disk,
    server: ForkServer,
    small: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
):
    folder, disk = tmp_path / "run", tmp_path / "disk"
    small_disk(disk, "4k")
    folder.mkdir()
    for place in (disk, folder):
        (place / "metrics.jsonl").touch()
    subprocess.run(["mount", "--bind", disk / "metrics.jsonl", folder / "metrics.jsonl"], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", folder / "metrics.jsonl"], check=True))
    options = {"log": tmp_path / "log", "cwd": tmp_path, "NATATTN_CACHE": str(undisturbed.cache)}
    assert server.run(["train", *small, f"hydra.run.dir={folder}"], **options) == 1
    assert one_line(tmp_path / "log") == (
        "natattn: run/metrics.jsonl: No space left on device; free space and resume with natattn train resume=run\n"
    )
    remount(disk, "size=64m")
    assert server.run(["train", "resume=run"], **options) == 0
    assert records(folder) == records(undisturbed.folder)


def test_no_room_for_anything(
    small_disk: Disk, server: ForkServer, small: list[str], undisturbed: Undisturbed, tmp_path: Path
):
    """Whatever the size of the disk, one line says so; and with more room the run goes on."""
    for kilobytes in (4, 8, 12, 20, 32, 64, 128, 256, 400):
        disk = tmp_path / f"disk{kilobytes}"
        small_disk(disk, f"{kilobytes}k")
        folder = disk / "run"
        options = {"log": tmp_path / "log", "cwd": disk, "NATATTN_CACHE": str(undisturbed.cache)}
        assert server.run(["train", *small, f"hydra.run.dir={folder}"], **options) in (1, 2)
        assert "No space left on device" in one_line(tmp_path / "log")
        check_whole(disk)
        remount(disk, "size=64m")
        command = ["resume=run"] if (folder / "config.yaml").exists() else [*small, f"hydra.run.dir={folder}"]
        assert server.run(["train", *command], **options) == 0, (kilobytes, (tmp_path / "log/stderr.txt").read_text())
        assert records(folder) == records(undisturbed.folder), kilobytes
        assert leftovers(folder) == [], kilobytes


def test_no_room_for_tokens(
    small_disk: Disk, server: ForkServer, small: list[str], undisturbed: Undisturbed, tmp_path: Path
):
    for kilobytes in (4, 8, 24):
        cache, folder = tmp_path / f"cache{kilobytes}", tmp_path / f"run{kilobytes}"
        small_disk(cache, f"{kilobytes}k")
        options = {"log": tmp_path / "log", "cwd": tmp_path, "NATATTN_CACHE": str(cache)}
        assert server.run(["train", *small, f"hydra.run.dir={folder}"], **options) in (1, 2)
        said = one_line(tmp_path / "log")
        assert f"{cache}/" in said
        assert "No space left on device" in said
        assert "NATATTN_CACHE" in said
        assert not folder.exists()
        check_whole(cache)
        remount(cache, "size=64m")
        assert server.run(["train", *small, f"hydra.run.dir={folder}"], **options) == 0
        assert records(folder) == records(undisturbed.folder)
        assert leftovers(cache) == []


def test_no_room_for_the_page(small_disk: Disk, server: ForkServer, undisturbed: Undisturbed, tmp_path: Path):
    small_disk(tmp_path / "disk", "8k")
    options = {"log": tmp_path / "log", "cwd": tmp_path}
    command = ["report", str(undisturbed.folder), f"output={tmp_path / 'disk' / 'report.html'}"]
    assert server.run(command, **options) != 0
    assert "report.html: cannot be written: No space left on device" in one_line(tmp_path / "log")
    assert list((tmp_path / "disk").iterdir()) == []


def test_no_room_for_wandb(
    small_disk: Disk, server: ForkServer, small: list[str], undisturbed: Undisturbed, tmp_path: Path
):
    folder = tmp_path / "run"
    small_disk(folder / "wandb", "8k")
    options = {"log": tmp_path / "log", "cwd": tmp_path, "NATATTN_CACHE": str(undisturbed.cache)}
    assert server.run(["train", *small, "tracker=offline", f"hydra.run.dir={folder}"], **options) == 0
    assert "training continues" in (tmp_path / "log" / "stdout.txt").read_text()
    assert (tmp_path / "log" / "stderr.txt").read_text() == ""
    assert records(folder) == records(undisturbed.folder)


def test_a_disk_that_may_not_be_written_to(
    small_disk: Disk, server: ForkServer, small: list[str], undisturbed: Undisturbed, tmp_path: Path
):
    disk = tmp_path / "disk"
    small_disk(disk, "64m")
    options = {"log": tmp_path / "log", "cwd": disk, "NATATTN_CACHE": str(undisturbed.cache)}
    remount(disk, "ro")
    assert server.run(["train", *small, "hydra.run.dir=run"], **options) == 2
    assert "Read-only file system" in one_line(tmp_path / "log")
    remount(disk, "rw")
    small_disk(disk / "run" / "checkpoints", "64m")
    fault = {
        "kind": "commanded",
        "roots": [str(disk)],
        "stage": "training",
        "number": 14,
        "command": f"mount -o remount,ro {disk / 'run' / 'checkpoints'}",
    }
    assert server.run(["train", *small, "hydra.run.dir=run"], fault=fault, **options) == 1
    said = one_line(tmp_path / "log")
    assert "run/checkpoints/step-000009: Read-only file system; make it writable and resume with" in said
    assert server.run(["train", "resume=run"], **options) == 1, "it is still so"
    one_line(tmp_path / "log")
    remount(disk / "run" / "checkpoints", "rw")
    assert server.run(["train", "resume=run"], **options) == 0
    assert records(disk / "run") == records(undisturbed.folder)
    assert leftovers(disk / "run") == []
