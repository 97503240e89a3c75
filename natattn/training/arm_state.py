"""Everything that an arm must remember, as named tensors and JSON: written by one process, or in parts by many.

Names are ``model/<weight>``, ``optimizer/state/<number>/<name>``, ``probe/<name>`` and ``patterns/<layer>``. One
process writes safetensors files for each kind; several write their parts with torch.distributed.checkpoint, in
safetensors too. Either is read by any number of processes.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from natattn.config.messages import first_line
from natattn.distributed.ranks import is_sharded, local, shard_like, sharded_like
from natattn.errors import UserError
from natattn.training.arms import Arm

_KINDS = ("model", "optimizer", "probe", "patterns")


@dataclass(frozen=True)
class Shape:
    """Of a stored tensor, whole."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


def write_arm(folder: Path, arm: Arm) -> Any:
    """Write an arm's tensors; with several ranks all of them call this. Returns: the rest, as JSON content."""
    tensors, rest = _tensors_of(arm)
    if arm.ranks.size > 1:
        _write_parts(_parts_folder(folder, arm), tensors)
    else:
        for kind in _KINDS:
            own = {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}
            if own or kind != "probe":
                save_file({name: tensor.contiguous() for name, tensor in own.items()}, _file(folder, arm, kind))
    return rest


def read_arm(folder: Path, arm: Arm, rest: Any) -> None:
    """Put back what ``write_arm`` wrote, by as many ranks as there are now.

    Raises: UserError when it is of another architecture.
    """
    parts = _parts_folder(folder, arm)
    source: _Source = _Parts(parts, arm) if parts.is_dir() else _Whole(folder, arm)
    shapes = source.shapes()
    targets = {f"model/{name}": tensor.detach() for name, tensor in arm.unique_tensors().items()}
    expected = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    found = {name: shape.sizes for name, shape in shapes.items() if name.startswith("model/")}
    if expected != found:
        name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise UserError(
            f"{folder}: weight {name.removeprefix('model/')} has shape {found.get(name)}, "
            f"the {arm.name} arm needs {expected.get(name)}"
        )
    others: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        empty = None if name.startswith("model/") else _empty(name, shape, arm)
        if empty is not None:
            others[name] = empty
    source.read({**targets, **others})
    _put_back(arm, {name: local(tensor) for name, tensor in others.items()}, rest)


def _put_back(arm: Arm, tensors: Mapping[str, Tensor], rest: Any) -> None:
    def under(kind: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{kind}/"): t for name, t in tensors.items() if name.startswith(f"{kind}/")}

    optimizer = under("optimizer")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in optimizer.items():
        section, _, address = name.partition("/")
        if section == "state":
            number, _, key = address.partition("/")
            state.setdefault(int(number), {})[key] = tensor
    remaining = {"dict": {key: child for key, child in rest["dict"].items() if key != "state"}}
    arm.optimizer.load_state_dict({**unflatten(remaining, optimizer), "state": state})
    if arm.probe is not None:
        arm.probe.load_state_dict(under("probe"))
    arm.patterns = {int(layer): rows for layer, rows in under("patterns").items()}


def _tensors_of(arm: Arm) -> tuple[dict[str, Tensor], Any]:
    """All tensors that this rank knows of by name, and the rest of the optimizer's state."""
    content = arm.optimizer.state_dict()
    for number, parameter in enumerate(arm.optimizer.parameters()):
        for name, value in content["state"].get(number, {}).items():
            if arm.optimizer.holds_shard(parameter, value):
                content["state"][number] = {**content["state"][number], name: sharded_like(value, parameter)}
    optimizer, rest = flatten(content)
    tensors = {f"model/{name}": tensor.detach() for name, tensor in arm.unique_tensors().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
    if arm.probe is not None:
        tensors |= {f"probe/{name}": tensor.detach() for name, tensor in arm.probe.state_dict().items()}
    return tensors | {f"patterns/{layer}": rows for layer, rows in arm.patterns.items()}, rest


def _empty(name: str, shape: Shape, arm: Arm) -> Tensor | None:
    """What to read a stored tensor into; None where another rank keeps it."""
    whole = torch.empty(shape.sizes, dtype=shape.dtype, device="meta")
    kind, _, address = name.partition("/")
    if kind == "optimizer" and address.startswith("state/"):
        _, number, key = address.split("/", 2)
        parameter = arm.optimizer.parameters()[int(number)]
        if not arm.optimizer.keeps(parameter, key):
            return None
        if arm.optimizer.holds_shard(parameter, whole):
            return sharded_like(torch.empty_like(local(parameter), dtype=shape.dtype), parameter)
    return torch.empty_like(whole, device=arm.device)


def flatten(value: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
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
        inner, skeleton[key] = flatten(child, f"{path}/{key}".lstrip("/"))
        tensors.update(inner)
    return tensors, {"dict" if isinstance(value, dict) else "list": skeleton}


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``flatten``."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content.lstrip("/")]  # older versions wrote a slash before the name
    if kind == "value":
        return content
    children = {key: unflatten(child, tensors) for key, child in content.items()}
    if kind == "list":
        return list(children.values())
    return {int(key) if key.isdigit() else key: child for key, child in children.items()}


def _file(folder: Path, arm: Arm, kind: str) -> Path:
    return folder / f"{arm.name}.{kind}.safetensors"


def _parts_folder(folder: Path, arm: Arm) -> Path:
    return folder / f"{arm.name}.parts"


def _names(file: Any) -> list[str]:
    names: list[str] = file.keys()
    return names


class _Source(Protocol):
    """Stored tensors of one arm."""

    def shapes(self) -> dict[str, Shape]:
        """Of all of them, by name."""

    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Copy some of them into tensors, of which each rank may hold a part."""


class _Whole:
    """The files that one process wrote."""

    def __init__(self, folder: Path, arm: Arm) -> None:
        self._files = {kind: _file(folder, arm, kind) for kind in _KINDS if _file(folder, arm, kind).exists()}

    def shapes(self) -> dict[str, Shape]:
        shapes = {}
        for kind, path in self._files.items():
            with safe_open(path, framework="pt") as file:
                for name in _names(file):
                    tensor = file.get_tensor(name)  # mapped, not read
                    shapes[f"{kind}/{name.lstrip('/')}"] = Shape(tuple(tensor.shape), tensor.dtype)
        return shapes

    def read(self, targets: Mapping[str, Tensor]) -> None:
        for kind, path in self._files.items():
            with safe_open(path, framework="pt") as file:
                for name in _names(file):
                    target = targets.get(f"{kind}/{name.lstrip('/')}")
                    if target is None:
                        continue
                    stored = file.get_tensor(name)
                    part = stored if local(target) is target else shard_like(stored, target)
                    local(target).copy_(part)


class _Parts:
    """The parts that several ranks wrote."""

    def __init__(self, folder: Path, arm: Arm) -> None:
        from torch.distributed.checkpoint import HuggingFaceStorageReader  # type: ignore[attr-defined]

        self._folder = folder
        self._reader = HuggingFaceStorageReader(str(folder))
        self._alone = arm.ranks.size == 1

    def shapes(self) -> dict[str, Shape]:
        stored = self._reader.read_metadata().state_dict_metadata
        return {name: Shape(tuple(entry.size), entry.properties.dtype) for name, entry in stored.items()}  # type: ignore[union-attr]

    def read(self, targets: Mapping[str, Tensor]) -> None:
        import torch.distributed.checkpoint as checkpoint

        with warnings.catch_warnings(), _in_one_line(f"{self._folder}: cannot be read"):
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(  # type: ignore[attr-defined]
                dict(targets), storage_reader=self._reader, no_dist=self._alone
            )


def _write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageWriter  # type: ignore[attr-defined]

    # A part may be a view of more than it shows, which is no file's business.
    own = {name: tensor if is_sharded(tensor) else tensor.contiguous() for name, tensor in tensors.items()}
    with _in_one_line(f"{folder}: cannot be written"):
        checkpoint.save(  # type: ignore[attr-defined]
            own, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True)
        )


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turn what several ranks report of a failed checkpoint into a UserError with the first cause."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise UserError(f"{what} by rank {rank}: {first_line(cause)}") from error
