import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from natattn.storage.atomic import naming, remove_folder, remove_unfinished, replacing, replacing_folder, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")], ids=repr)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")

    def interrupted_write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted_write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_killed_process_left_is_removed_in_time(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".a.bin.1.tmp", ".a.bin.2.tmp", ".b.bin.3.tmp"))
    for file in (old, new, other):
        file.write_text("half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    with replacing(tmp_path / "a.bin") as temporary:
        temporary.write_text("new")
    assert sorted(os.listdir(tmp_path)) == [".a.bin.2.tmp", ".b.bin.3.tmp", "a.bin"]


def test_the_file_is_synced_before_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen, fsync = tmp_path / "a.bin", [], os.fsync

    def recording_fsync(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_ino == tmp_path.stat().st_ino, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert seen == [(False, False), (True, True)]


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"label": "natural · aif", "floor": None})
    assert "natural · aif" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"label": "natural · aif", "floor": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["label"] == "natural · aif"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with replacing_folder(path) as temporary:
            (temporary / "a.txt").write_text(content)
            assert not path.exists() or (path / "a.txt").read_text() == "old"
    assert (path / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["folder"]

    def interrupted_write() -> None:
        with replacing_folder(path) as temporary:
            (temporary / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert (path / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_has_lost_its_name_before_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("")
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: None)  # killed before anything is removed
    remove_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == [".retired-folder"]
    monkeypatch.undo()
    (tmp_path / ".a.json.tmp").write_text("of somebody else")
    (tmp_path / f".a.json.{'0' * 32}.tmp").write_text("")
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == [".a.json.tmp"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "whatever it says"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device")]),
    ],
    ids=repr,
)
def test_a_full_disk_has_one_name_whatever_library_met_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, naming(tmp_path / "a.bin"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))


@pytest.mark.parametrize("error", [ValueError("shape"), OSError(errno.EACCES, "no", "/elsewhere/a.txt")], ids=repr)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming(tmp_path / "a.bin"):
        raise error
    assert caught.value is error
