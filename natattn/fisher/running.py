"""Exponential averages of Kronecker factors over captures, equal on all ranks that share the batches."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from natattn.distributed.ranks import Ranks


@dataclass(eq=False)
class RunningAverage:
    """Exponential average of one factor for each of its heads; updating it never synchronises with the device.

    Attributes:
        total: sum of the finite factors with exponential weights, [heads, dim, dim].
        weight: sum of these weights, [heads].
        skipped: number of factors of each head that were not finite.
    """

    total: Tensor
    weight: Tensor
    skipped: Tensor

    @classmethod
    def start(cls, factor: Tensor) -> Self:
        """Return the average of no factors."""
        heads = factor.shape[0]
        return cls(torch.zeros_like(factor), factor.new_zeros(heads), factor.new_zeros(heads, dtype=torch.int64))

    def enter(self, factor: Tensor, decay: float) -> None:
        """Enter a factor; a head whose factor is not finite keeps its average."""
        finite = factor.isfinite().all(-1).all(-1)
        kept = finite[:, None, None]
        self.total = torch.where(kept, torch.lerp(factor, self.total, decay), self.total)
        self.weight = torch.where(finite, decay * self.weight + (1 - decay), self.weight)
        self.skipped = self.skipped + ~finite

    def average(self) -> Tensor:
        """Return the bias-corrected average, [heads, dim, dim]; the identity for a head without a finite factor yet."""
        identity = torch.eye(self.total.shape[-1], dtype=self.total.dtype, device=self.total.device)
        weight = self.weight[:, None, None]
        return torch.where(weight > 0, self.total / weight, identity)


class RunningAverages:
    """The averages of several factors, by name.

    With several ranks, each captures from its part of the batch; ``reduce`` combines the captures, so that all ranks
    keep the same averages.

    Args:
        decay: of the averages, in [0, 1); they are bias-corrected.
        sequences: number of sequences that are captured, the first ones of the whole batch.
        ranks: the processes that share each batch, in their order.
    """

    def __init__(self, decay: float, sequences: int, ranks: Ranks) -> None:
        self.decay = decay
        self.sequences = sequences
        self.ranks = ranks
        self._averages: dict[str, RunningAverage] = {}
        self._captured: dict[str, tuple[Tensor, Tensor]] = {}  # factors that are not reduced yet, and their weights

    def own_sequences(self, batch: int) -> int:
        """Return how many of this rank's sequences are captured: at least one, possibly with weight 0."""
        return min(max(self.sequences - self.ranks.rank * batch, 1), batch)

    def enter(self, name: str, factor: Tensor, rows: Tensor | int, batch: int) -> None:
        """Enter a factor that is a mean over ``rows``, from a forward pass over ``batch`` sequences."""
        if self.ranks.size == 1:
            self._enter(name, factor)
            return
        counts = self.ranks.rank * batch < self.sequences
        weight = torch.as_tensor(rows, dtype=factor.dtype, device=factor.device).mean() * counts
        # A rank without captured sequences contributes only the shape of the factor.
        self._captured[name] = (factor if counts else torch.zeros_like(factor)), weight

    def reduce(self, ranks: Ranks) -> None:
        """Enter the captures of all ranks, as means weighted by their numbers of rows.

        If the mask differs between heads, the weight is the mean number of rows.
        """
        if self._captured:
            names, parts = list(self._captured), list(self._captured.values())
            self._captured = {}
            weighted = ranks.sum([factor * weight for factor, weight in parts] + [weight for _, weight in parts])
            factors, weights = weighted[: len(names)], weighted[len(names) :]
            for name, factor, weight in zip(names, factors, weights, strict=True):
                self._enter(name, factor / weight)

    def average(self, name: str) -> Tensor | None:
        """Return the average of ``RunningAverage``; None if no factor has been entered."""
        running = self._averages.get(name)
        return None if running is None else running.average()

    @property
    def skipped(self) -> dict[str, int]:
        """Number of captures of single heads that were skipped because they were not finite, by factor."""
        return {name: int(average.skipped.sum()) for name, average in self._averages.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages as tensors under flat names."""
        return {
            f"{name}/{field.name}": getattr(average, field.name)
            for name, average in self._averages.items()
            for field in fields(average)
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        names = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
        self._averages = {
            name: RunningAverage(*(tensors[f"{name}/{field.name}"].clone() for field in fields(RunningAverage)))
            for name in names
        }

    def _enter(self, name: str, factor: Tensor) -> None:
        if name not in self._averages:
            self._averages[name] = RunningAverage.start(factor)
        self._averages[name].enter(factor, self.decay)
