"""What every direction is: a rule from gradients and state to updates, and the step that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
# Root mean square of an Adam update in the course of training (Liu et al. 2025): what matches other updates to it.
ADAM_RMS = 0.2


@dataclass(frozen=True)
class Place:
    """Where in a model a matrix stands: all that a direction knows of it beside its values.

    Attributes:
        role: "query", "key", "value", "output", "mlp", "embedding", "head" or "vector".
        layer: index of the attention layer of its block; None outside blocks.
        module: name of the linear module, whose input covariance may be kept.
        heads: heads that its outputs (query, key, value) or inputs (output) belong to; None where there are none.
        dimensions: of the parameter; 2 is a matrix.
    """

    role: str
    layer: int | None = None
    module: str = ""
    heads: int | None = None
    dimensions: int = 2


class Statistics(Protocol):
    """What a direction may ask about attention in this step; an ``AttentionProbe`` answers it."""

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers."""

    @property
    def recorded_layers(self) -> list[int]:
        """Those that the last recorded step has seen."""

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Mean of |E| over the layer's heads and allowed pairs, a float32 scalar."""


class FactorStatistics(Statistics, Protocol):
    """What a preconditioner may ask as well; a ``FisherProbe`` answers it."""

    def average(self, owner: str | int, name: str) -> Tensor | None:
        """A factor's running average, [heads or 1, dim, dim]; None before its first capture."""

    def mean_energy(self, layer: int) -> Tensor:
        """Mean of E over the layer's heads and allowed pairs, a float32 scalar."""

    def attention_distance(self, layer: int) -> Tensor:
        """Mean distance that each head attends over, in tokens, [H]."""


class Direction:
    """Gradients and state → updates, for the matrices of one role.

    ``updates`` is the mathematics, on lists so that equal shapes can be batched. ``step_`` applies it with the step
    that all directions share; a direction overrides it only with a faster kernel that computes the same thing.

    Attributes:
        elementwise: indifferent to how a parameter is cut or transposed, so it is shown as it is stored.
        quantities: attention quantities that the statistics must have recorded.
    """

    elementwise: ClassVar[bool] = False
    quantities: tuple[str, ...] = ()

    @property
    def needs_statistics(self) -> bool:
        """Whether it reads attention's energies or factors."""
        return bool(self.quantities)

    def factors(self, role: str) -> tuple[str, ...]:
        """Names of the factors that it reads for a matrix of this role; "covariance" is that of the plain input."""
        return ()

    def check(self, place: Place) -> None:
        """Refuse a parameter that it cannot serve. Raises: ValueError; by default for what is not a matrix."""
        if not self.elementwise and place.dimensions != 2:
            raise ValueError(
                f"the {place.role} parameters ({place.module}) have {place.dimensions} dimensions; "
                "this direction is for matrices, valid: adam, momentum"
            )

    def initial_state(self, parameter: Tensor) -> State:
        """State of one matrix before its first step; a direction may add to it later."""
        raise NotImplementedError

    def condition_numbers(self, state: State, place: Place, statistics: Statistics) -> tuple[Tensor, Tensor] | None:
        """Of a preconditioner: those of its damped input factor, [heads], without and with the root in use."""
        return None

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """Updates u of every matrix, to be applied as θ ← θ − learning_rate · u; changes the states in place."""
        raise NotImplementedError

    def step_(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """θ ← (1 − learning_rate · weight_decay) θ − learning_rate · u, in place (decoupled weight decay)."""
        updates = self.updates(gradients, states, places, statistics)
        torch._foreach_mul_(list(parameters), 1 - learning_rate * weight_decay)
        torch._foreach_add_(list(parameters), updates, alpha=-learning_rate)
