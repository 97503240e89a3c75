import errno
import os
from pathlib import Path

import pytest

from natattn.data.cache import cache_root, found_or_made, make_folder, replacing
from natattn.errors import UserError


def test_the_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATATTN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "natattn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "natattn"
    monkeypatch.setenv("NATATTN_CACHE", "~/mine")
    assert cache_root() == tmp_path / "mine"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"a\.bin: No space left on device; free space or set NATATTN_CACHE"),
        replacing(tmp_path / "a.bin"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="Input/output"), replacing(tmp_path / "a.bin"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be created .*NATATTN_CACHE"):
        make_folder(tmp_path / "file" / "folder")


def test_an_entry_is_made_once_and_then_found(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        assert found_or_made(tmp_path / "entry", lambda: made or None, lambda: made.append("content")) == ["content"]


def test_an_entry_that_another_process_made_meanwhile_is_taken(tmp_path: Path) -> None:
    found = iter([None, "theirs"])
    assert found_or_made(tmp_path / "entry", lambda: next(found), lambda: pytest.fail("made again")) == "theirs"


def test_a_folder_that_keeps_nothing_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"entry does not keep its content"):
        found_or_made(tmp_path / "entry", lambda: None, lambda: None)
