"""What every direction is: a rule from gradients and state to updates, and the step that all of them share."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


class Statistics(Protocol):
    """What a direction may ask about attention in this step; an ``AttentionProbe`` answers it."""

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers."""

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Mean of |E| over the layer's heads and allowed pairs, a float32 scalar."""


class Direction:
    """Gradients and state → updates, for the parameter views of one group.

    ``updates`` is the mathematics, on lists so that equal shapes can be batched. ``step_`` applies it with the step
    that all directions share; a direction overrides it only with a faster kernel that computes the same thing.
    """

    needs_statistics = False
    elementwise = False  # True: indifferent to how a parameter is cut or transposed, so it is shown as it is stored

    def initial_state(self, parameter: Tensor) -> State:
        """State of one view before its first step, shaped like ``parameter``."""
        raise NotImplementedError

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        layers: Sequence[int | None],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """Updates u of every view, to be applied as θ ← θ − learning_rate · u; changes the states in place."""
        raise NotImplementedError

    def step_(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        states: Sequence[State],
        layers: Sequence[int | None],
        statistics: Statistics | None,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """θ ← (1 − learning_rate · weight_decay) θ − learning_rate · u, in place (decoupled weight decay)."""
        updates = self.updates(gradients, states, layers, statistics)
        torch._foreach_mul_(list(parameters), 1 - learning_rate * weight_decay)
        torch._foreach_add_(list(parameters), updates, alpha=-learning_rate)
