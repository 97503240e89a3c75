"""Checkpoints: what a run needs to continue exactly, as safetensors and JSON files that are written atomically.

A checkpoint is a folder ``step-000200`` with the tensors of every arm, ``state.json``, and ``manifest.json`` with the
SHA-256 of every file. It is written under a temporary name, synced and renamed; one that is removed is renamed first.

Tensors are named ``model/<weight>``, ``optimizer/state/<index>/<name>``, ``probe/<name>`` and ``patterns/<layer>``. One
process writes a safetensors file for each kind; several write their shards with torch.distributed.checkpoint, also as
safetensors. Both can be read by any number of processes.
"""

import contextlib
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from natattn.config.messages import first_line
from natattn.distributed.ranks import is_sharded, local, on_first, shard_like, sharded_like
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
from natattn.storage.documents import finite_number, read_json, whole_number
from natattn.training.arm import Arm, Status

MANIFEST = "manifest.json"
BEST = "best"
Outcome = Literal["finished", "interrupted", "time_limit", "diverged"]
_KINDS = ("model", "optimizer", "probe", "patterns")


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        evaluated_step: last step whose evaluation is in the metrics file; -1 for none.
        best_loss: the candidate's validation loss at the best checkpoint.
        seconds: wall time of training so far, accumulated over resumes.
        arm_seconds: time of each arm's steps, and of its optimizer under "<arm> optimizer".
    """

    step: int = 0
    evaluated_step: int = -1
    best_loss: float = math.inf
    seconds: float = 0.0
    arm_seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON content that a checkpoint stores."""
        return {**vars(self), "best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Progress":
        """Parse what ``to_json`` returned.

        Raises: ValueError, KeyError or TypeError for anything else.
        """
        best = content["best_loss"]
        return cls(
            step=whole_number(content["step"], least=0),
            evaluated_step=whole_number(content["evaluated_step"], least=-1),
            best_loss=math.inf if best is None else finite_number(best),
            seconds=finite_number(content["seconds"], least=0),
            arm_seconds={str(arm): finite_number(value, least=0) for arm, value in content["arm_seconds"].items()},
        )


def save_checkpoint(
    folder: Path, progress: Progress, arms: list[Arm], *, metrics_position: int, keep: int, best: bool
) -> Path:
    """Write the checkpoint of the present step, then remove all but the ``keep`` newest.

    All ranks call this, and each writes its shards.

    Args:
        metrics_position: size of the metrics file in bytes; resuming truncates it there.
        best: also make it the checkpoint ``best``.
    """
    ranks = arms[0].ranks
    target = folder / _name(progress.step)
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
                state = {
                    "progress": progress.to_json(),
                    "metrics_position": metrics_position,
                    "arms": {arm.name: {"status": arm.status, "cause": arm.cause} for arm in arms},
                    "step": progress.step,
                    "optimizers": skeletons,
                }
                write_json(temporary / "state.json", state)
                _install(temporary, target, keep=keep, best=best)
            ranks.wait()
    except BaseException:
        if ranks.is_first:  # on a full disk it would take space that can be saved
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def restore_checkpoint(folder: Path, arms: list[Arm]) -> tuple[Progress, int, list[str]]:
    """Load the newest valid checkpoint into the arms. All ranks call this.

    Returns: how far the run is, the size of the metrics file then, and warnings about damaged checkpoints; the start
        of a run if there is no checkpoint.
    Raises: UserError if no checkpoint is valid, or the newest valid one belongs to another run.
    """
    ranks = arms[0].ranks

    def newest() -> tuple[str | None, dict[str, Any], list[str]]:
        path, state, messages = load_newest(folder)
        return None if path is None else path.name, state, messages

    # The first rank chooses for all: it removes damaged checkpoints.
    name, state, messages = on_first(ranks, newest)
    if name is None:
        return Progress(), 0, messages
    path = folder / name
    try:
        for arm in arms:
            arm.status, arm.cause = _parse_status(state["arms"][arm.name])
            read_arm(path, arm, state["optimizers"][arm.name])
        progress = Progress.from_json(state["progress"])
        if name != _name(progress.step):
            raise ValueError(f"it is of step {progress.step}")
        return progress, whole_number(state["metrics_position"], least=0), messages
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and ranks.size > 1:
            raise  # perhaps another rank was lost
        # The checksums are right: another version wrote it, or somebody edited it.
        what = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path}: not a checkpoint of this run ({what}); start a new run") from error


def load_newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """Find the newest checkpoint whose files match its manifest and whose state is JSON; remove newer damaged ones.

    Returns: its folder, its state, and a warning for each damaged checkpoint; (None, {}, []) if there is none at all.
    Raises: UserError if there are checkpoints and all are damaged; then none is removed.
    """
    damaged: dict[Path, str] = {}
    for path in _newest_first(folder):
        try:
            fault, state = find_fault(path), read_json(path / "state.json")
        except (OSError, ValueError) as error:
            fault, state = f"state.json cannot be read: {error}", None
        if fault is not None or not isinstance(state, dict):
            damaged[path] = fault or "state.json is not a JSON object"
            continue
        for other in damaged:
            remove_folder(other)
        messages = [f"checkpoint {other.name} was damaged ({why}); using {path.name}" for other, why in damaged.items()]
        return path, state, messages
    if damaged:
        path, fault = next(iter(damaged.items()))
        raise UserError(f"{folder}: all {len(damaged)} checkpoints are damaged ({path.name}: {fault}); start a new run")
    return None, {}, []


def find_fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None."""
    try:
        manifest = read_json(path / MANIFEST)
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    if not isinstance(manifest, dict) or "state.json" not in manifest:
        return "its manifest is incomplete"
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file != path / MANIFEST}
    if missing := sorted(manifest.keys() - present):
        return f"{missing[0]} is missing"
    if unknown := sorted(present - manifest.keys()):
        return f"{unknown[0]} has no checksum"
    for name, digest in manifest.items():
        if sha256_of(path / name) != digest:
            return f"{name} does not match its checksum"
    return None


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _install(temporary: Path, target: Path, *, keep: int, best: bool) -> None:
    """Give a checkpoint whose files are written its manifest and its final name."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    write_json(temporary / MANIFEST, {str(path.relative_to(temporary)): sha256_of(path) for path in files})
    folder = target.parent
    if best:  # before the rename: a run that is killed in between saves this step again
        _mark_best(folder, temporary)
    install_folder(temporary, target)
    for old in _newest_first(folder)[keep:]:
        remove_folder(old)
    sync(folder)


def _mark_best(folder: Path, target: Path) -> None:
    """Copy the checkpoint to ``best`` by hard links, which take no space and survive pruning."""
    temporary = unfinished(folder / BEST)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(target, temporary, copy_function=os.link)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(target, temporary)
    install_folder(temporary, folder / BEST)


def _newest_first(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _parse_status(content: dict[str, Any]) -> tuple[Status, str | None]:
    status, cause = content["status"], content["cause"]
    if status not in ("running", "diverged") or not (cause is None or isinstance(cause, str)):
        raise ValueError(f"an arm is {status!r} because of {cause!r}")
    return cast(Status, status), cause


@dataclass(frozen=True)
class StoredTensor:
    """Full shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Source(Protocol):
    """Stored tensors of one arm."""

    def tensors(self) -> dict[str, StoredTensor]:
        """Return shapes and dtypes by name."""

    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Copy stored tensors into ``targets``, which may be sharded over the ranks."""


def write_arm(folder: Path, arm: Arm) -> Any:
    """Write an arm's tensors; all ranks call this. Returns: the rest of its state as JSON content."""
    content = arm.optimizer.state_dict()
    if arm.ranks.size > 1:
        for index, parameter in enumerate(arm.optimizer.parameters()):
            for name, value in content["state"].get(index, {}).items():
                if arm.optimizer.holds_shard(parameter, value):
                    content["state"][index] = {**content["state"][index], name: sharded_like(value, parameter)}
    optimizer, rest = flatten(content)
    tensors = {f"model/{name}": tensor.detach() for name, tensor in arm.unique_tensors().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
    if arm.probe is not None:
        tensors |= {f"probe/{name}": tensor.detach() for name, tensor in arm.probe.state_dict().items()}
    tensors |= {f"patterns/{layer}": rows for layer, rows in arm.patterns.items()}
    if arm.ranks.size > 1:
        _write_shards(_shards_folder(folder, arm), tensors)
        return rest
    for kind in _KINDS:
        of_kind = _below(kind, tensors)
        if of_kind or kind != "probe":
            save_file({name: tensor.contiguous() for name, tensor in of_kind.items()}, _file(folder, arm, kind))
    return rest


def read_arm(folder: Path, arm: Arm, rest: Any) -> None:
    """Restore what ``write_arm`` wrote; the number of ranks may differ.

    Raises: UserError for weights of another architecture.
    """
    shards = _shards_folder(folder, arm)
    source: _Source = _Shards(shards, arm) if shards.is_dir() else _Files(folder, arm)
    stored = source.tensors()
    targets = {f"model/{name}": tensor.detach() for name, tensor in arm.unique_tensors().items()}
    needed = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    shapes = {name: of_file.shape for name, of_file in stored.items() if name.startswith("model/")}
    if needed != shapes:
        name = next(name for name in {**needed, **shapes} if needed.get(name) != shapes.get(name))
        raise UserError(
            f"{folder}: weight {name.removeprefix('model/')} has shape {shapes.get(name)}, "
            f"the {arm.name} arm needs {needed.get(name)}"
        )
    others: dict[str, Tensor] = {}
    for name, of_file in stored.items():
        empty = None if name.startswith("model/") else _empty(name, of_file, arm)
        if empty is not None:
            others[name] = empty
    source.read({**targets, **others})

    loaded = {name: local(tensor) for name, tensor in others.items()}
    optimizer = _below("optimizer", loaded)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("state", optimizer).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    remaining = {"dict": {key: child for key, child in rest["dict"].items() if key != "state"}}
    arm.optimizer.load_state_dict({**unflatten(remaining, optimizer), "state": state})
    if arm.probe is not None:
        arm.probe.load_state_dict(_below("probe", loaded))
    arm.patterns = {int(layer): rows for layer, rows in _below("patterns", loaded).items()}


def _empty(name: str, stored: StoredTensor, arm: Arm) -> Tensor | None:
    """Return a tensor to read a stored one into; None if another rank keeps it."""
    full = torch.empty(stored.shape, dtype=stored.dtype, device="meta")
    kind, _, address = name.partition("/")
    if arm.ranks.size > 1 and kind == "optimizer" and address.startswith("state/"):
        _, index, key = address.split("/", 2)
        parameter = arm.optimizer.parameters()[int(index)]
        if not arm.optimizer.keeps(parameter, key):
            return None
        if arm.optimizer.holds_shard(parameter, full):
            return sharded_like(torch.empty_like(local(parameter), dtype=stored.dtype), parameter)
    return torch.empty_like(full, device=arm.device)


def flatten(value: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts and lists into tensors by name and a JSON skeleton that refers to them."""
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
        inner, skeleton[key] = flatten(child, f"{path}/{key}".lstrip("/"))
        tensors.update(inner)
    return tensors, {"dict" if isinstance(value, dict) else "list": skeleton}


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Invert ``flatten``."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content.lstrip("/")]  # older versions wrote a slash before the name
    if kind == "value":
        return content
    children = {key: unflatten(child, tensors) for key, child in content.items()}
    if kind == "list":
        return list(children.values())
    return {int(key) if key.isdigit() else key: child for key, child in children.items()}


def _below(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``kind``/, without that prefix."""
    return {name.removeprefix(f"{kind}/"): t for name, t in tensors.items() if name.startswith(f"{kind}/")}


def _file(folder: Path, arm: Arm, kind: str) -> Path:
    return folder / f"{arm.name}.{kind}.safetensors"


def _shards_folder(folder: Path, arm: Arm) -> Path:
    return folder / f"{arm.name}.parts"


class _Files:
    """Safetensors files that one process wrote."""

    def __init__(self, folder: Path, arm: Arm) -> None:
        self._files = {kind: _file(folder, arm, kind) for kind in _KINDS if _file(folder, arm, kind).exists()}

    def tensors(self) -> dict[str, StoredTensor]:
        return {name: StoredTensor(tuple(tensor.shape), tensor.dtype) for name, tensor in self._items()}

    def read(self, targets: Mapping[str, Tensor]) -> None:
        for name, stored in self._items():
            if (target := targets.get(name)) is not None:
                local(target).copy_(shard_like(stored, target) if is_sharded(target) else stored)

    def _items(self) -> Iterator[tuple[str, Tensor]]:
        for kind, path in self._files.items():
            with safe_open(path, framework="pt") as file:
                for name in cast(list[str], file.keys()):
                    yield f"{kind}/{name.lstrip('/')}", file.get_tensor(name)  # memory-mapped, not read


class _Shards:
    """Files that several ranks wrote with torch.distributed.checkpoint."""

    def __init__(self, folder: Path, arm: Arm) -> None:
        from torch.distributed.checkpoint import HuggingFaceStorageReader  # type: ignore[attr-defined]

        self._folder = folder
        self._reader = HuggingFaceStorageReader(str(folder))
        self._alone = arm.ranks.size == 1

    def tensors(self) -> dict[str, StoredTensor]:
        stored = self._reader.read_metadata().state_dict_metadata
        return {name: StoredTensor(tuple(entry.size), entry.properties.dtype) for name, entry in stored.items()}  # type: ignore[union-attr]

    def read(self, targets: Mapping[str, Tensor]) -> None:
        import torch.distributed.checkpoint as checkpoint

        with warnings.catch_warnings(), _one_line_errors(f"{self._folder}: cannot be read"):
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(  # type: ignore[attr-defined]
                dict(targets), storage_reader=self._reader, no_dist=self._alone
            )


def _write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageWriter  # type: ignore[attr-defined]

    # contiguous(): a view would be stored with all of its base.
    content = {name: tensor if is_sharded(tensor) else tensor.contiguous() for name, tensor in tensors.items()}
    with _one_line_errors(f"{folder}: cannot be written"):
        checkpoint.save(  # type: ignore[attr-defined]
            content, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True)
        )


@contextlib.contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turn a CheckpointException, which lists the failures of all ranks, into a UserError with the first one."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise UserError(f"{what} by rank {rank}: {first_line(cause)}") from error
