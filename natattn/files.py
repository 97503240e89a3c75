"""Files that are there wholly or not at all, also after a crash; and where the configuration lies."""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from natattn.errors import UserError

CONFIG_NAME = "train"
_STALE_SECONDS = 24 * 3600  # a temporary file that nobody has written to for so long is nobody's


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written; at the end it is synced and takes the place of `path`.

    Whoever reads `path`, or writes it at the same time, sees one whole file. After an error nothing is left of the
    temporary one. Raises OSError where the folder cannot be written to.
    """
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)  # the new name is on the disk too
    finally:
        temporary.unlink(missing_ok=True)


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


def _remove_stale(path: Path) -> None:
    """Remove what processes left that were killed while they wrote this file."""
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                stale.unlink()


def _sync(path: Path) -> None:
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
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise UserError(f"{package}: the installation has no conf/ folder; install natattn again")
