"""The processes that train one model together, and the few collectives they need."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from natattn.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process and the others of its process group; by default one process, for which every method is trivial.

    All ranks must call the same methods in the same order.

    Attributes:
        rank: index of this process.
        size: number of processes.
        group: process group of torch.distributed; None for the default group.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of_group(cls, group: Any = None) -> "Ranks":
        """Return the ranks of an initialized process group, or a single rank if there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Return whether this is the rank that writes and logs."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks, with one collective per dtype; shapes must agree on all ranks."""
        return self._reduced(tensors, "SUM")

    def maximum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the elementwise maxima over the ranks; see ``sum``."""
        return self._reduced(tensors, "MAX")

    def _reduced(self, tensors: Sequence[Tensor], operation: str) -> list[Tensor]:
        if self.size == 1:
            return list(tensors)
        results: list[Tensor] = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            indices = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[index].reshape(-1) for index in indices])
            dist.all_reduce(flat, op=getattr(dist.ReduceOp, operation), group=self.group)
            parts = torch.split(flat, [tensors[index].numel() for index in indices])
            for index, part in zip(indices, parts, strict=True):
                results[index] = part.view(tensors[index].shape)
        return results

    def gather(self, value: Any, device: torch.device | None = None) -> list[Any]:
        """Return the JSON values of all ranks, in rank order."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device or "cpu")
        lengths = [torch.zeros(1, dtype=torch.int64, device=text.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)], device=text.device), group=self.group)
        longest = max(int(length) for length in lengths)
        padded = torch.cat([text, text.new_zeros(longest - len(text))])
        texts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(texts, padded, group=self.group)
        return [json.loads(bytes(text[: int(length)].tolist())) for text, length in zip(texts, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """Return the first rank's JSON value on every rank."""
        return self.gather(value if self.is_first else None)[0]

    def wait(self) -> None:
        """Block until every rank has called this."""
        self.gather(None)


def on_first(ranks: Ranks, action: Callable[[], Result]) -> Result:
    """Run an action on the first rank while the others wait, and return its result, JSON content, on every rank.

    Raises: UserError on every rank if the action raises one.
    """
    if ranks.size == 1:
        return action()
    result, own = None, None
    if ranks.is_first:
        try:
            result = action()
        except UserError as error:
            own = error
    result, message = ranks.from_first([result, None if own is None else str(own)])
    if message is not None:
        raise own or UserError(message)
    return cast(Result, result)


def full(tensor: Tensor) -> Tensor:
    """Return a sharded tensor (``DTensor``) gathered on every rank; other tensors unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def local(tensor: Tensor) -> Tensor:
    """Return a view of this rank's shard of a ``DTensor``; other tensors unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is sharded over the ranks (a ``DTensor``)."""
    return hasattr(tensor, "placements")


def shard_like(tensor: Tensor, sharded: Tensor) -> Tensor:
    """Return this rank's shard of a full tensor, sharded as ``sharded`` is; communicates nothing."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = sharded.device_mesh, sharded.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def sharded_like(part: Tensor, sharded: Tensor) -> Tensor:
    """Return the ``DTensor`` whose shard on this rank is ``part``, sharded as ``sharded`` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        sharded.device_mesh,  # type: ignore[attr-defined]
        sharded.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
