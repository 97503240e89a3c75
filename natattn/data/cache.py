"""Where tokens are kept between runs."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from natattn import files
from natattn.errors import UserError

_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def cache_root() -> Path:
    """$NATATTN_CACHE, else $XDG_CACHE_HOME/natattn, else ~/.cache/natattn."""
    if chosen := os.environ.get("NATATTN_CACHE"):
        return Path(os.path.expanduser(chosen))
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "natattn"
    return Path.home() / ".cache" / "natattn"


def make_folder(folder: Path) -> None:
    """Make a cache folder. Raises UserError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set NATATTN_CACHE to a folder of yours"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """`natattn.files.replacing` for a file of the cache: where there is no room or no right to write is a UserError."""
    try:
        with files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make room or set NATATTN_CACHE to another folder"
            ) from error
        raise
