"""The processes that train one model together: who this one is, and the few things that it tells the others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those of a process group; by default it is alone, and every method is free.

    All ranks must call the same methods in the same order.

    Attributes:
        rank, size: its number, from 0, and how many there are.
        group: of torch.distributed; None is the default group.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of_group(cls, group: Any = None) -> "Ranks":
        """Those of an open process group; alone where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and logs."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the ranks, one collective for each dtype; the tensors have the same shapes on every rank."""
        return self._reduced(tensors, "SUM")

    def maximum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The largest over the ranks, element by element; as ``sum``."""
        return self._reduced(tensors, "MAX")

    def _reduced(self, tensors: Sequence[Tensor], operation: str) -> list[Tensor]:
        if self.size == 1:
            return list(tensors)
        results: list[Tensor] = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            numbers = [number for number, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[number].reshape(-1) for number in numbers])
            dist.all_reduce(flat, op=getattr(dist.ReduceOp, operation), group=self.group)
            parts = torch.split(flat, [tensors[number].numel() for number in numbers])
            for number, part in zip(numbers, parts, strict=True):
                results[number] = part.view(tensors[number].shape)
        return results

    def gather(self, value: Any, device: torch.device | None = None) -> list[Any]:
        """What every rank has to say, in their order; ``value`` is JSON content."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device or "cpu")
        lengths = [torch.zeros(1, dtype=torch.int64, device=text.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)], device=text.device), group=self.group)
        longest = max(int(length) for length in lengths)
        padded = torch.cat([text, text.new_zeros(longest - len(text))])
        texts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(texts, padded, group=self.group)
        return [json.loads(bytes(found[: int(length)].tolist())) for found, length in zip(texts, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """What the first rank says; ``value`` is JSON content."""
        return self.gather(value if self.is_first else None)[0]

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather(None)


def full(tensor: Tensor) -> Tensor:
    """A tensor of which every rank holds a part (a ``DTensor``) in one piece, on every rank; others as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a ``DTensor``, as a view; others as they are."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def is_sharded(tensor: Tensor) -> bool:
    """Whether the ranks hold a part each."""
    return hasattr(tensor, "placements")


def shard_like(tensor: Tensor, sharded: Tensor) -> Tensor:
    """This rank's part of a whole tensor that is shaped like ``sharded``, cut as that is; nothing is communicated."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = sharded.device_mesh, sharded.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def sharded_like(part: Tensor, sharded: Tensor) -> Tensor:
    """The ``DTensor`` that this rank's part belongs to, cut as ``sharded`` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        sharded.device_mesh,  # type: ignore[attr-defined]
        sharded.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
