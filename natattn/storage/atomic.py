"""Files and folders that are written atomically, also across a crash; and the location of the configuration."""

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
_STALE_SECONDS = 24 * 3600  # after this time without a write, a temporary file belongs to no running process
_WRITING, _RETIRED = ".writing-", ".retired-"  # prefixes of folders that are being written or removed
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# Error numbers in the messages of safetensors, tokenizers and shutil.
_SYSTEM_ERROR = re.compile(r"(?:os error |Errno )(\d+)")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path`; on exit sync it and atomically replace `path` with it.

    Concurrent readers and writers of `path` always see one complete file. After an error the temporary file is removed.

    Raises: OSError, naming `path`, if it cannot be written.
    """
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)  # makes the new name durable
    finally:
        _discard(temporary)


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # on a disk that became read-only; the first error is the one to report
        temporary.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder and its contents. Only one process may write it at a time."""
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
    """Return the temporary name of a folder that will replace `path`; ``remove_unfinished`` removes such folders."""
    return path.with_name(_WRITING + path.name)


def install_folder(temporary: Path, path: Path) -> None:
    """Sync a finished folder and let it replace `path`."""
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
    """Remove a folder so that a partial one never exists under its name."""
    retired = path.with_name(_RETIRED + path.name)
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(path, retired)
    shutil.rmtree(retired, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the leftovers of killed processes from a folder that no other process is writing to."""
    for path in [*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_RETIRED}*")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            _discard(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Re-raise any disk error inside the block as an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        number = _number_of(error)
        if number is None or not is_of_the_disk(OSError(number, "")) or not _concerns(path, error):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _concerns(path: Path, error: Exception) -> bool:
    """Return whether the error is about writing `path` rather than about reading another file."""
    name = getattr(error, "filename", None)
    return not isinstance(name, str | Path) or Path(name).is_relative_to(path.parent)


def _number_of(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _SYSTEM_ERROR.search(str(error))
    return int(found[1]) if found else None


def is_of_the_disk(error: OSError) -> bool:
    """Return whether the disk is full or not writable, which the user can fix."""
    return error.errno in _FULL | _FORBIDDEN


def what_to_mend(error: OSError) -> str:
    """Return what the user can do about a disk error."""
    return "free space" if error.errno in _FULL else "make it writable"


def pretrained_source(path: str) -> tuple[str, dict[str, str]]:
    """Return the arguments of ``from_pretrained`` for a path: a folder or hub name, and the name of a GGUF file.

    A leading ~ is expanded if the result exists.
    """
    expanded = os.path.expanduser(path)
    if expanded.lower().endswith(".gguf") and os.path.isfile(expanded):
        return os.path.dirname(expanded) or ".", {"gguf_file": os.path.basename(expanded)}
    return (expanded if os.path.isdir(expanded) else path), {}


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON atomically.

    Raises: ValueError for nan and infinity.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_stale(path: Path) -> None:
    """Remove temporary files of processes that were killed while writing this file."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if is_stale(temporary):
                temporary.unlink()


def is_stale(temporary: Path) -> bool:
    """Return whether a temporary file was left behind by a killed process."""
    try:
        return time.time() - temporary.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False  # renamed in the meantime


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def conf_folder() -> Path:
    """Return the folder of the configuration: inside an installed package, or next to it in a checkout.

    Raises: UserError if neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise UserError(f"{package}: the installation has no conf/ folder. Reinstall natattn")
