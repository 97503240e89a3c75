"""Where tokens are kept between runs, and files that are there wholly or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from natattn.errors import UserError


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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
