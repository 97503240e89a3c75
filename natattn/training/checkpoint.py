"""Checkpoints: safetensors and JSON, complete or absent, and never older than they say.

A checkpoint is a folder ``step-000200`` holding two safetensors files per arm (weights, optimizer state),
``state.json`` and ``manifest.json`` with every file's SHA-256. It is written under a temporary name, synced, renamed.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from natattn.errors import UserError
from natattn.files import write_json
from natattn.training.arms import Arm

MANIFEST = "manifest.json"
BEST = "best"


def save_checkpoint(folder: Path, step: int, arms: list[Arm], state: dict[str, Any], *, keep: int, best: bool) -> Path:
    """Write checkpoint ``step``, then remove all but the ``keep`` newest; ``best`` also makes it the best one.

    Args:
        state: JSON content that resuming needs beside weights and optimizer states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{step:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    skeletons = {}
    for arm in arms:
        tensors, skeletons[arm.name] = _flatten(arm.optimizer.state_dict())
        save_file(_contiguous(arm.unique_tensors()), temporary / f"{arm.name}.model.safetensors")
        save_file(_contiguous(tensors), temporary / f"{arm.name}.optimizer.safetensors")
        if arm.probe is not None:
            save_file(_contiguous(arm.probe.state_dict()), temporary / f"{arm.name}.probe.safetensors")
        patterns = {str(layer): rows for layer, rows in arm.patterns.items()}
        save_file(_contiguous(patterns), temporary / f"{arm.name}.patterns.safetensors")
    write_json(temporary / "state.json", {**state, "step": step, "optimizers": skeletons})
    write_json(temporary / MANIFEST, {path.name: _sha256(path) for path in sorted(temporary.iterdir())})
    for path in [*temporary.iterdir(), temporary]:
        _sync(path)
    target = folder / f"step-{step:06d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    if best:
        _mark_best(folder, target)
    _sync(folder)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)
    return target


def load_newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: its folder and state, and a warning for every damaged one, which is removed.

    Returns: (None, {}, []) where no checkpoint was ever written.
    Raises: UserError where there are checkpoints and all are damaged; nothing is removed then.
    """
    damaged: dict[Path, str] = {}
    for path in _newest_first(folder):
        fault = _fault(path)
        if fault is not None:
            damaged[path] = fault
            continue
        for other in damaged:
            shutil.rmtree(other)
        warnings = [f"checkpoint {other.name} was damaged ({why}); using {path.name}" for other, why in damaged.items()]
        return path, json.loads((path / "state.json").read_text(encoding="utf-8")), warnings
    if damaged:
        path, fault = next(iter(damaged.items()))
        raise UserError(f"{folder}: all {len(damaged)} checkpoints are damaged ({path.name}: {fault}); start a new run")
    return None, {}, []


def restore_arm(path: Path, arm: Arm, state: dict[str, Any]) -> None:
    """Put a checkpoint's weights and optimizer state into an arm.

    Raises: UserError when the checkpoint is of another architecture.
    """
    weights = load_file(path / f"{arm.name}.model.safetensors")
    expected = {name: tuple(tensor.shape) for name, tensor in arm.unique_tensors().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise UserError(
            f"{path}: weight {name} has shape {found.get(name)}, the {arm.name} arm needs {expected.get(name)}"
        )
    with torch.no_grad():
        for name, tensor in arm.unique_tensors().items():
            tensor.copy_(weights[name])
    tensors = load_file(path / f"{arm.name}.optimizer.safetensors", device=str(arm.device))
    arm.optimizer.load_state_dict(_unflatten(state["optimizers"][arm.name], tensors))
    if arm.probe is not None:
        arm.probe.load_state_dict(load_file(path / f"{arm.name}.probe.safetensors", device=str(arm.device)))
    patterns = path / f"{arm.name}.patterns.safetensors"
    if patterns.exists():  # not in checkpoints of older versions
        arm.patterns = {int(layer): rows for layer, rows in load_file(patterns, device=str(arm.device)).items()}


def _flatten(value: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts and lists into named tensors and a JSON skeleton that refers to them."""
    if isinstance(value, Tensor):
        return {path: value.detach()}, {"tensor": path}
    if isinstance(value, dict):
        items: dict[str, Any] = {str(key): child for key, child in value.items()}
    elif isinstance(value, list | tuple):
        items = {str(index): child for index, child in enumerate(value)}
    else:
        return {}, {"value": value}
    tensors: dict[str, Tensor] = {}
    skeleton: dict[str, Any] = {}
    for key, child in items.items():
        inner, skeleton[key] = _flatten(child, f"{path}/{key}")
        tensors.update(inner)
    return tensors, {"dict" if isinstance(value, dict) else "list": skeleton}


def _unflatten(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    children = {key: _unflatten(child, tensors) for key, child in content.items()}
    if kind == "list":
        return list(children.values())
    return {int(key) if key.isdigit() else key: child for key, child in children.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _mark_best(folder: Path, target: Path) -> None:
    """Make ``best`` a copy of the checkpoint by hard links: no second copy on disk, and pruning leaves it alone."""
    temporary = folder / ".writing-best"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(target, temporary, copy_function=os.link)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(target, temporary)
    retired = folder / ".retired-best"
    shutil.rmtree(retired, ignore_errors=True)
    if (folder / BEST).exists():
        os.replace(folder / BEST, retired)
    os.replace(temporary, folder / BEST)
    shutil.rmtree(retired, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    if not isinstance(manifest, dict) or "state.json" not in manifest:
        return "its manifest is incomplete"
    for name, digest in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} does not match its checksum"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
