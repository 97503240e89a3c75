"""Where tokens are kept between runs, and files that are there wholly or not at all."""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from natattn.errors import UserError

_STALE_SECONDS = 24 * 3600  # a temporary file that nobody has written to for so long is nobody's
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def cache_root() -> Path:
    """$NATATTN_CACHE, else $XDG_CACHE_HOME/natattn, else ~/.cache/natattn."""
    if chosen := os.environ.get("NATATTN_CACHE"):
        return Path(chosen).expanduser()
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
    """A temporary file beside `path`, to be written; at the end it is synced and takes the place of `path`.

    Whoever reads `path`, or writes it at the same time, sees one whole file. After an error nothing is left.
    """
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of processes that were killed while they wrote
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                stale.unlink()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make room or set NATATTN_CACHE to another folder"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
