"""Gradient descent with momentum (Polyak 1964; Nesterov 1983), and the momentum that other directions start from."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from natattn.config.base import Decay
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.matrix import Matrix, State


def average_gradients(matrices: Sequence[Matrix], momentum: float, *, nesterov: bool) -> list[Tensor]:
    """Set m ← momentum·m + (1 − momentum)·g in ``state["momentum"]``; return m, or with Nesterov its look-ahead.

    The look-ahead is momentum·m + (1 − momentum)·g of the new m, as in ``torch.optim.Muon``.
    """
    averages = [matrix.state["momentum"] for matrix in matrices]
    gradients = [matrix.gradient for matrix in matrices]
    torch._foreach_lerp_(averages, gradients, 1 - momentum)
    return list(torch._foreach_lerp(gradients, averages, momentum)) if nesterov else averages


class Momentum(Direction):
    """u = (1 − momentum)·Σ momentumᵏ g, the average of the gradients, or with Nesterov its look-ahead.

    The accumulating form of SGD with momentum, u = Σ momentumᵏ g, is the same with 1 − momentum of this learning rate.
    """

    elementwise: ClassVar[bool] = True

    kind: Literal["momentum"] = "momentum"
    momentum: Decay
    nesterov: bool

    def initial_state(self, value: Tensor) -> State:
        """Return zero momentum."""
        return {"momentum": torch.zeros_like(value)}

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the average, or its look-ahead."""
        return average_gradients(matrices, self.momentum, nesterov=self.nesterov)
