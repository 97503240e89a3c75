"""What the doctor finds of caches and folders, and what it says to do about them."""

import errno
import os
import shutil
import subprocess
import tempfile
import time

import pytest
from findings import found_of
from PIL import Image

from natattn.config import compose as config
from natattn.data import prepare
from natattn.data.cache import cache_root
from natattn.doctor import storage
from natattn.training.build import open_task


def test_a_cache_with_damaged_and_stale_files(monkeypatch, tmp_path):
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    settings = config.settings_of(config.compose(["data=grammar", "data.train_tokens=5000", "tokenizer=byte"]))
    prepare(settings.data, settings.tokenizer, progress=False)
    found = found_of("storage", storage.storage)
    assert {finding.state for finding in found.values()} == {"ok"}
    (entry,) = (cache_root() / "tokens").iterdir()
    (entry / "train.bin").write_bytes(b"\0" + (entry / "train.bin").read_bytes()[1:] + b"\0")
    for name in ("images", "tokenizers"):
        (cache_root() / name / "0123").mkdir(parents=True)
        (cache_root() / name / "0123" / "meta.json").write_text("{")
    stale, fresh = entry / ".train.bin.0.tmp", entry / ".train.bin.1.tmp"
    for path in (stale, fresh):
        path.write_bytes(bytes(2048))
    old = time.time() - 3 * 24 * 3600
    os.utime(stale, (old, old))
    found = found_of("storage", storage.storage)
    assert found["damaged entries"].found == f"3, such as {entry}"
    assert found["damaged entries"].state == "note"
    assert found["temporary files"].found == "1 of killed processes, 2 KiB"
    removal = found["temporary files"].advice.partition(": ")[2]
    subprocess.run(removal, shell=True, check=True)
    assert not stale.exists()
    assert fresh.exists()


def test_folders_that_cannot_be_written_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file")
    found = found_of("storage", storage.storage)
    assert found["runs"].state == "broken"
    assert "hydra.run.dir" in found["runs"].advice

    def read_only(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    found = found_of("storage", storage.storage)
    assert {what: finding.state for what, finding in found.items() if what in ("runs", "cache", "hub cache")} == {
        "runs": "broken", "cache": "broken", "hub cache": "note",
    }  # fmt: skip
    assert "Read-only file system" in found["cache"].found
    assert "NATATTN_CACHE" in found["cache"].advice


def test_folders_that_are_links_to_nothing_or_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "loop"))
    found = found_of("storage", storage.storage)
    assert found["runs"].state == found["cache"].state == "broken"
    assert f"{tmp_path / 'outputs'} is a link that leads nowhere" in found["runs"].found
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens").write_text("a file")
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    found = found_of("storage", storage.storage)
    assert [what for what, finding in found.items() if finding.state == "broken"] == ["runs", "cache/tokens"]
    assert "Not a directory" in found["cache/tokens"].found
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / ("x" * 300)))
    found = found_of("storage", storage.storage)
    assert "File name too long" in found["cache"].found
    assert "storage" not in found


def test_what_it_says_to_run_can_be_pasted(monkeypatch, tmp_path):
    cache = tmp_path / "my cache's"
    monkeypatch.setenv("NATATTN_CACHE", str(cache))
    entry = cache / "tokens" / "e1"
    entry.mkdir(parents=True)
    stale = entry / ".train.bin.0.tmp"
    stale.touch()
    os.utime(stale, (0, 0))
    found = found_of("storage", storage.storage)
    for what in ("temporary files", "damaged entries"):
        assert entry.exists()
        subprocess.run(found[what].advice.rpartition(": ")[2], shell=True, check=True)
        assert not stale.exists()
    assert not entry.exists()


@pytest.mark.parametrize(("free", "state"), [(10 << 30, "ok"), (1 << 30, "note"), (1 << 20, "broken")])
def test_room_for_runs(free, state, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2 * free, free, free))
    assert found_of("storage", storage.storage)["runs"].state == state


def test_large_caches_are_looked_at_in_part(monkeypatch, tmp_path):
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "tokens"):
        (cache_root() / kind / "0123").mkdir(parents=True)
        (cache_root() / kind / "0123" / "meta.json").write_text("{")
    found = found_of("storage", storage.storage)
    assert found["cache entries"].found.startswith("2 bytes in 2 files")
    assert found["damaged entries"].found.startswith("2, such as")
    monkeypatch.setattr(storage, "_MOST_FILES", 1)
    monkeypatch.setattr(storage, "_MOST_HASHED", 1)  # tokens come first
    found = found_of("storage", storage.storage)
    assert found["cache entries"].found.startswith("more than 1 bytes in 1 files")
    assert found["damaged entries"].found.startswith("1, such as")


def test_a_whole_entry_of_images_is_not_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for number in range(4):
        Image.new("L", (4, 4), 40 * number).save(tmp_path / "pictures" / "a" / f"{number}.png")
    (tmp_path / "pictures" / "b").mkdir()
    for number in range(4):
        Image.new("L", (4, 4), 40 * number + 1).save(tmp_path / "pictures" / "b" / f"{number}.png")
    settings = [
        "task=vision",
        "data=image_folder",
        f"data.train={tmp_path / 'pictures'}",
        "data.image_size=4",
        "data.shift=1",
    ]
    open_task(config.settings_of(config.compose(settings)), progress=False)
    assert list((cache_root() / "images").iterdir())
    assert "damaged entries" not in found_of("storage", storage.storage)
