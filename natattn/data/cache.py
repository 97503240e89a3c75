"""Where tokens and pixels are kept between runs."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from natattn.errors import ResourceError, UserError
from natattn.storage import atomic as files

Entry = TypeVar("Entry")


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
    """`natattn.storage.atomic.replacing` for a file of the cache: no room or no right to write is a ResourceError."""
    try:
        with files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if not files.is_of_the_disk(error) or error.filename != str(path):
            raise
        mend = f"{files.what_to_mend(error)} or set NATATTN_CACHE to another folder"
        raise ResourceError(f"{path}: {error.strerror}", mend=mend) from error


def found_or_made(folder: Path, read: Callable[[], Entry | None], make: Callable[[], None]) -> Entry:
    """What `read` finds in a cache folder; where that is nothing, `make` fills the folder, in one process at a time.

    Raises UserError if the folder cannot be made, or does not keep what is written to it.
    """
    entry = read()
    if entry is None:
        with alone_in(folder):
            entry = read()  # another process may have made it
            if entry is None:
                make()
                entry = read()
    if entry is None:
        raise UserError(f"the cache folder {folder} does not keep what is written to it")
    return entry


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a cache folder, and wait until no other process fills it: what it leaves need not be made again.

    A process that dies lets go of it. Where the disk knows no locks nobody waits, and both make the same files.
    Raises UserError if the folder cannot be made.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            _lock(descriptor, folder)
            files.remove_unfinished(folder)
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"natattn: {folder}: another process prepares the same data; waiting for it", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
