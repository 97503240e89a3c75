"""Files and folders that are there wholly or not at all, also after a crash; and where the configuration lies."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from natattn.errors import UserError

CONFIG_NAME = "train"
_STALE_SECONDS = 24 * 3600  # a temporary file that nobody has written to for so long is nobody's
_WRITING, _RETIRED = ".writing-", ".retired-"  # before the names of folders that are not there yet, or no more
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# How safetensors and tokenizers end their own exceptions, and shutil lists those of many files.
_SYSTEM_ERROR = re.compile(r"(?:os error |Errno )(\d+)")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written; at the end it is synced and takes the place of `path`.

    Whoever reads `path`, or writes it at the same time, sees one whole file. After an error nothing is left of the
    temporary one. Raises OSError, naming `path`, where it cannot be written.
    """
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)  # the new name is on the disk too
    finally:
        _discard(temporary)


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # a disk that has become read-only keeps it; the first error is the one to tell
        temporary.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder and all that is in it. Only one process may write it at a time."""
    temporary = unfinished(path)
    try:
        with naming(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            install_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def unfinished(path: Path) -> Path:
    """Where a folder is written before it takes the place of `path`; ``remove_unfinished`` finds it there."""
    return path.with_name(_WRITING + path.name)


def install_folder(temporary: Path, path: Path) -> None:
    """Sync a folder that is written, and have it take the place of `path`."""
    for inner in [*temporary.rglob("*"), temporary]:
        sync(inner)
    retired = path.with_name(_RETIRED + path.name)
    shutil.rmtree(retired, ignore_errors=True)
    if path.exists():
        os.replace(path, retired)
    os.replace(temporary, path)
    sync(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no half of it is ever there under its name."""
    retired = path.with_name(_RETIRED + path.name)
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(path, retired)
    shutil.rmtree(retired, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process writes to now."""
    for path in [*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_RETIRED}*")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            _discard(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong with the disk inside is an OSError that names `path`, whatever library met it."""
    try:
        yield
    except Exception as error:
        number = _number_of(error)
        if number is None or not is_of_the_disk(OSError(number, "")) or not _lies_beside(path, error):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _lies_beside(path: Path, error: Exception) -> bool:
    """Whether it is `path` that could not be written, and not another file that could not be read meanwhile."""
    name = getattr(error, "filename", None)
    return not isinstance(name, str | Path) or Path(name).is_relative_to(path.parent)


def _number_of(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _SYSTEM_ERROR.search(str(error))
    return int(found[1]) if found else None


def is_of_the_disk(error: OSError) -> bool:
    """Whether a disk is full or may not be written to, which is for the user to mend."""
    return error.errno in _FULL | _FORBIDDEN


def what_to_mend(error: OSError) -> str:
    """What the user can do about an error of the disk."""
    return "free space" if error.errno in _FULL else "make it writable"


def pretrained_source(path: str) -> tuple[str, dict[str, str]]:
    """What transformers' ``from_pretrained`` is given for a path: a folder or hub name, and for a GGUF file its name.

    A leading ~ is the user's home where that is there.
    """
    expanded = os.path.expanduser(path)
    if expanded.lower().endswith(".gguf") and os.path.isfile(expanded):
        return os.path.dirname(expanded) or ".", {"gguf_file": os.path.basename(expanded)}
    return (expanded if os.path.isdir(expanded) else path), {}


def write_json(path: Path, content: Any) -> None:
    """Write JSON. Raises ValueError for a nan or an infinity, which strict JSON has no word for."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_stale(path: Path) -> None:
    """Remove what processes left that were killed while they wrote this file."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if is_stale(temporary):
                temporary.unlink()


def is_stale(temporary: Path) -> bool:
    """Whether a temporary file has been left by a process that was killed."""
    try:
        return time.time() - temporary.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False  # just renamed


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def conf_folder() -> Path:
    """Where the configuration lives: inside an installed package, else beside it in a checkout.

    Raises: UserError where neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise UserError(f"{package}: the installation has no conf/ folder; install natattn again")
