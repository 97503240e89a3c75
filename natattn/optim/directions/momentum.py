"""Gradient descent with momentum (Polyak 1964; Nesterov 1983), and the momentum that other directions start from."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from natattn.config.base import Decay, Settings
from natattn.optim.directions.base import Direction, Place, State, Statistics


class MomentumSettings(Settings):
    """u = the average of the gradients, (1 − momentum)·Σ momentumᵏ g."""

    kind: Literal["momentum"]
    momentum: Decay
    nesterov: bool

    def build(self) -> "Momentum":
        """The direction itself."""
        return Momentum(self.momentum, nesterov=self.nesterov)


def average_gradients(
    gradients: Sequence[Tensor], states: Sequence[State], momentum: float, *, nesterov: bool
) -> list[Tensor]:
    """m ← momentum·m + (1 − momentum)·g in ``state["momentum"]``; returns m, or with Nesterov its look-ahead.

    As in ``torch.optim.Muon``: the look-ahead is momentum·m + (1 − momentum)·g of the new m.
    """
    averages = [state["momentum"] for state in states]
    torch._foreach_lerp_(averages, list(gradients), 1 - momentum)
    if not nesterov:
        return averages
    return list(torch._foreach_lerp(list(gradients), averages, momentum))


class Momentum(Direction):
    """SGD with momentum, as an average: the same as the accumulating form with 1/(1 − momentum) of its rate."""

    elementwise = True

    def __init__(self, momentum: float, *, nesterov: bool) -> None:
        self.momentum = momentum
        self.nesterov = nesterov

    def initial_state(self, parameter: Tensor) -> State:
        """Zero momentum."""
        return {"momentum": torch.zeros_like(parameter)}

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The average, or its look-ahead."""
        return average_gradients(gradients, states, self.momentum, nesterov=self.nesterov)
