"""The exponential average of a Kronecker factor over captures."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(eq=False)
class RunningAverage:
    """Exponential average of one factor, over heads; all tensors on the factor's device, and nothing waits for them.

    Attributes:
        total: sum of the finite factors by their exponential weights, [heads, dim, dim].
        weight: sum of these weights, [heads].
        skipped: per head, factors that were not finite.
    """

    total: Tensor
    weight: Tensor
    skipped: Tensor

    @classmethod
    def start(cls, factor: Tensor) -> Self:
        """Nothing seen yet."""
        heads = factor.shape[0]
        return cls(torch.zeros_like(factor), factor.new_zeros(heads), factor.new_zeros(heads, dtype=torch.int64))

    def enter(self, factor: Tensor, decay: float) -> None:
        """A head whose factor is not finite keeps its average as it was."""
        finite = factor.isfinite().all(-1).all(-1)
        kept = finite[:, None, None]
        self.total = torch.where(kept, torch.lerp(factor, self.total, decay), self.total)
        self.weight = torch.where(finite, decay * self.weight + (1 - decay), self.weight)
        self.skipped = self.skipped + ~finite

    def average(self) -> Tensor:
        """Bias-corrected, [heads, dim, dim]; the identity for a head that has no finite factor yet."""
        identity = torch.eye(self.total.shape[-1], dtype=self.total.dtype, device=self.total.device)
        weight = self.weight[:, None, None]
        return torch.where(weight > 0, self.total / weight, identity)
