"""The cache of tokens and pixels."""

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
    """Return $NATATTN_CACHE, else $XDG_CACHE_HOME/natattn, else ~/.cache/natattn."""
    if chosen := os.environ.get("NATATTN_CACHE"):
        return Path(os.path.expanduser(chosen))
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "natattn"
    return Path.home() / ".cache" / "natattn"


def make_folder(folder: Path) -> None:
    """Create a cache folder. Raises: UserError if this is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be created ({error.strerror}). Set NATATTN_CACHE to another folder"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Like `natattn.storage.atomic.replacing`, but raise ResourceError if the disk is full or not writable."""
    try:
        with files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if not files.is_of_the_disk(error) or error.filename != str(path):
            raise
        mend = f"{files.what_to_mend(error)} or set NATATTN_CACHE to another folder"
        raise ResourceError(f"{path}: {error.strerror}", mend=mend) from error


def found_or_made(folder: Path, read: Callable[[], Entry | None], make: Callable[[], None]) -> Entry:
    """Return what `read` finds in a cache folder; if nothing, fill it with `make`, in one process at a time.

    Raises: UserError if the folder cannot be created or does not keep its content.
    """
    entry = read()
    if entry is None:
        with alone_in(folder):
            entry = read()  # another process may have made it
            if entry is None:
                make()
                entry = read()
    if entry is None:
        raise UserError(f"the cache folder {folder} does not keep its content")
    return entry


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Create a cache folder, and wait until no other process fills it.

    A process that dies releases its lock. On a disk without locks nobody waits, and all processes write the same files.

    Raises: UserError if the folder cannot be created.
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
        print(f"natattn: {folder}: another process is preparing the same data; waiting", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
