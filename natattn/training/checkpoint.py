"""Checkpoints: safetensors and JSON, complete or absent, and never older than they say.

A checkpoint is a folder ``step-000200`` holding each arm's safetensors files (see ``arm_state``),
``state.json`` and ``manifest.json`` with every file's SHA-256. It is written under a temporary name, synced, renamed;
one that is removed is renamed first.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from natattn.errors import UserError
from natattn.storage.atomic import (
    install_folder,
    naming,
    remove_folder,
    remove_unfinished,
    sha256_of,
    sync,
    unfinished,
    write_json,
)
from natattn.storage.documents import read_json
from natattn.training.arm_state import write_arm
from natattn.training.arms import Arm

MANIFEST = "manifest.json"
BEST = "best"


def save_checkpoint(folder: Path, step: int, arms: list[Arm], state: dict[str, Any], *, keep: int, best: bool) -> Path:
    """Write checkpoint ``step``, then remove all but the ``keep`` newest; ``best`` also makes it the best one.

    With several ranks all of them call this, and each writes its parts.

    Args:
        state: JSON content that resuming needs beside weights and optimizer states.
    """
    ranks = arms[0].ranks
    target = folder / checkpoint_name(step)
    temporary = unfinished(target)
    try:
        with naming(target):
            if ranks.is_first:
                folder.mkdir(parents=True, exist_ok=True)
                remove_unfinished(folder)
                temporary.mkdir()
            ranks.wait()
            skeletons = {arm.name: write_arm(temporary, arm) for arm in arms}
            ranks.wait()
            if ranks.is_first:
                write_json(temporary / "state.json", {**state, "step": step, "optimizers": skeletons})
                _complete(temporary, target, keep=keep, best=best)
            ranks.wait()
    except BaseException:
        if ranks.is_first:  # on a full disk it would take the room of what can be saved
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def checkpoint_name(step: int) -> str:
    """Of the folder of a checkpoint."""
    return f"step-{step:06d}"


def _complete(temporary: Path, target: Path, *, keep: int, best: bool) -> None:
    """Give a checkpoint whose files are written its manifest and its name."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    write_json(temporary / MANIFEST, {str(path.relative_to(temporary)): sha256_of(path) for path in files})
    folder = target.parent
    if best:  # before it has its name: whoever is killed in between comes here again
        _mark_best(folder, temporary)
    install_folder(temporary, target)
    for old in _newest_first(folder)[keep:]:
        remove_folder(old)
    sync(folder)


def load_newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: its folder and state, and a warning for every damaged one, which is removed.

    A checkpoint is whole where its files are those of its manifest, each with its digest, and its state is JSON.

    Returns: (None, {}, []) where no checkpoint was ever written.
    Raises: UserError where there are checkpoints and all are damaged; nothing is removed then.
    """
    damaged: dict[Path, str] = {}
    for path in _newest_first(folder):
        try:
            fault, state = _fault(path), read_json(path / "state.json")
        except (OSError, ValueError) as error:
            fault, state = f"state.json cannot be read: {error}", None
        if fault is not None or not isinstance(state, dict):
            damaged[path] = fault or "state.json is no JSON object"
            continue
        for other in damaged:
            remove_folder(other)
        warnings = [f"checkpoint {other.name} was damaged ({why}); using {path.name}" for other, why in damaged.items()]
        return path, state, warnings
    if damaged:
        path, fault = next(iter(damaged.items()))
        raise UserError(f"{folder}: all {len(damaged)} checkpoints are damaged ({path.name}: {fault}); start a new run")
    return None, {}, []


def _mark_best(folder: Path, target: Path) -> None:
    """Make ``best`` a copy of the checkpoint by hard links: no second copy on disk, and pruning leaves it alone."""
    temporary = unfinished(folder / BEST)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(target, temporary, copy_function=os.link)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(target, temporary)
    install_folder(temporary, folder / BEST)


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    if not isinstance(manifest, dict) or "state.json" not in manifest:
        return "its manifest is incomplete"
    there = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file != path / MANIFEST}
    if missing := sorted(manifest.keys() - there):
        return f"{missing[0]} is missing"
    if unknown := sorted(there - manifest.keys()):
        return f"{unknown[0]} has no checksum"
    for name, digest in manifest.items():
        if sha256_of(path / name) != digest:
            return f"{name} does not match its checksum"
    return None
