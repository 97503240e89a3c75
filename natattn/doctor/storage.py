"""Where things are kept: caches, and the folder of the runs."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from natattn.doctor.findings import Finding, State, amount
from natattn.storage.atomic import is_stale

_ENOUGH = 2 << 30  # bytes; a default run takes some ten MiB, one of size=small about 5 GiB
_TOO_LITTLE = 100 << 20
_MOST_FILES = 20_000  # looked at; beyond that sizes are lower bounds
_MOST_HASHED = 2 << 30  # bytes of cache entries whose content is checked: some seconds
_KINDS = ("tokens", "tokenizers", "images")  # folders of the cache


def storage() -> Iterator[Finding]:
    """The runs' folder, natattn's cache, and that of the Hugging Face libraries."""
    from natattn.data.cache import cache_root

    yield from _folder("runs", Path("outputs"), "choose another folder with hydra.run.dir=FOLDER, or make room")
    root = cache_root()
    yield from _folder("cache", root, "set NATATTN_CACHE to a folder of yours, or make room")
    if os.path.isdir(root):
        yield from _kinds(root) if _write_failure(root) is None else ()
        yield from _entries(root)
    yield from _hub_cache()


def _folder(what: str, folder: Path, advice: str) -> Iterator[Finding]:
    """Whether files can be written to a folder, or to where it would be made, and for how many there is room."""
    failure = _write_failure(folder)
    if failure is not None:
        yield Finding(what, f"{folder} cannot be written to: {failure}", "broken", advice)
        return
    free = shutil.disk_usage(_nearest(folder)).free
    state: State = "broken" if free < _TOO_LITTLE else "note" if free < _ENOUGH else "ok"
    found = f"{folder}{'' if folder.is_dir() else ' (not yet there)'}, {amount(free)} free"
    yield Finding(what, found, state, "" if state == "ok" else advice)


def _write_failure(folder: Path) -> str | None:
    """Why no file can be made in a folder, or in the nearest one above it that exists; nothing stays behind."""
    try:
        nearest = _nearest(folder)
        if nearest.is_symlink() and not os.path.exists(nearest):
            return f"{nearest} is a link that leads nowhere"
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"natattn")
            file.flush()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest path above it that exists, be it a file or a link to nothing.

    Raises: OSError for a path that cannot be one, or may not be looked at.
    """
    path = folder.absolute()
    while path != path.parent:
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            break
    return path


def _kinds(root: Path) -> Iterator[Finding]:
    """Folders of the cache that are none, or cannot be written to."""
    for folder in (root / kind for kind in _KINDS):
        failure = _write_failure(folder)
        if failure is not None:
            advice = "remove it, it is made again when needed; or set NATATTN_CACHE to a folder of yours"
            yield Finding(f"cache/{folder.name}", f"{folder} cannot be written to: {failure}", "broken", advice)


def _entries(root: Path) -> Iterator[Finding]:
    """What the cache holds: its size, damaged entries, and what killed processes left."""
    files: list[Path] = []
    complete = True
    for path in root.rglob("*"):
        if len(files) == _MOST_FILES:
            complete = False
            break
        if path.is_file():
            files.append(path)
    size = sum(_size(path) for path in files)
    more = "" if complete else "more than "
    yield Finding("cache entries", f"{more}{amount(size)} in {len(files):,} files; deleted ones are made again")
    stale = [path for path in files if path.name.startswith(".") and path.name.endswith(".tmp") and is_stale(path)]
    if stale:
        advice = f"delete them: find {shlex.quote(str(root))} -name '.*.tmp' -mtime +0 -delete"
        found = f"{len(stale)} of killed processes, {amount(sum(map(_size, stale)))}"
        yield Finding("temporary files", found, "note", advice)
    damaged = _damaged(root)
    if damaged:
        removal = shlex.join(["rm", "-r", *map(str, damaged[:3])])
        advice = f"they are made again when needed; to make room: {removal}"
        yield Finding("damaged entries", f"{len(damaged)}, such as {damaged[0]}", "note", advice)


def _damaged(root: Path) -> list[Path]:
    """Entries of which any byte is not what was written, as far as they can be read in seconds."""
    from natattn.data.images import pixels
    from natattn.data.text.tokenized import entry_is_whole
    from natattn.data.text.tokenizers import load_bpe

    checks: tuple[Callable[[Path], bool], ...] = (
        entry_is_whole,
        lambda folder: load_bpe(folder) is not None,
        pixels.entry_is_whole,
    )
    damaged: list[Path] = []
    hashed = 0
    for kind, is_whole in zip(_KINDS, checks, strict=True):
        for folder in sorted((root / kind).glob("*")):
            hashed += sum(_size(path) for path in folder.glob("*"))
            if hashed > _MOST_HASHED:
                return damaged
            if not is_whole(folder):
                damaged.append(folder)
    return damaged


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # gone meanwhile


def _hub_cache() -> Iterator[Finding]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    failure = _write_failure(folder)
    if failure is not None:
        advice = "set HF_HOME to a folder of yours; needed for data and models from the Hugging Face Hub alone"
        yield Finding("hub cache", f"{folder} cannot be written to: {failure}", "note", advice)
    else:
        yield Finding("hub cache", str(folder))
