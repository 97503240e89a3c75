"""The contract of directions, the attention statistics that they may read, and the step that they share."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from natattn.config.base import Settings
from natattn.optim.matrix import Matrix, State

# Root mean square of an Adam update during training (Liu et al. 2025); other updates are scaled to it.
ADAM_RMS = 0.2


class Statistics(Protocol):
    """Attention statistics of the current step, as an ``AttentionProbe`` records them."""

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers."""

    @property
    def recorded_layers(self) -> list[int]:
        """Indices of the layers that the last recorded step reached."""

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Return the mean of |E| over the layer's heads and allowed pairs, a float32 scalar."""


class FactorStatistics(Statistics, Protocol):
    """Attention statistics with running Kronecker factors, as a ``FisherProbe`` keeps them."""

    def average(self, owner: str | int, name: str) -> Tensor | None:
        """Return a factor's running average, [heads or 1, dim, dim]; None before its first capture."""

    def mean_energy(self, layer: int) -> Tensor:
        """Return the mean of E over the layer's heads and allowed pairs, a float32 scalar."""

    def attention_distance(self, layer: int) -> Tensor:
        """Return the mean distance that each head attends over, in tokens, [H]."""


class Direction(Settings):
    """A rule that turns gradients and state into updates; its fields are its settings.

    ``updates`` is the mathematics, on lists so that equal shapes can be batched. ``step`` applies it with decoupled
    weight decay; a direction overrides it only with a faster kernel that computes the same.

    Attributes:
        elementwise: the rule does not depend on how a parameter is cut or transposed, so it is shown as it is stored.
        quantities: attention quantities that the statistics must record.
    """

    elementwise: ClassVar[bool] = False
    quantities: ClassVar[tuple[str, ...]] = ()

    def factors(self, role: str) -> tuple[str, ...]:
        """Return the names of the factors read for a matrix of this role; "covariance" is that of the plain input."""
        return ()

    def check(self, matrix: Matrix) -> None:
        """Raise ValueError for a parameter that the direction cannot serve; by default one that is not a matrix."""
        if not self.elementwise and matrix.parameter.ndim != 2:
            raise ValueError(
                f"the {matrix.role} parameters ({matrix.module}) have {matrix.parameter.ndim} dimensions; "
                "this direction is for matrices. Use adam or momentum for them"
            )

    def initial_state(self, value: Tensor) -> State:
        """Return the state of a matrix before its first step; a direction may add to it later."""
        raise NotImplementedError

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the update u of every matrix, for θ ← θ − learning_rate · u, and change the states in place.

        Args:
            matrices: with gradients and states; all matrices of a parameter group with this direction and one rate.
            attention: the statistics of this step; None if the optimizer has no probe.
        """
        raise NotImplementedError

    def step(
        self, matrices: Sequence[Matrix], attention: Statistics | None, *, learning_rate: float, weight_decay: float
    ) -> None:
        """Set θ ← (1 − learning_rate · weight_decay) θ − learning_rate · u, in place (decoupled weight decay)."""
        updates = self.updates(matrices, attention)
        values = [matrix.value for matrix in matrices]
        torch._foreach_mul_(values, 1 - learning_rate * weight_decay)
        torch._foreach_add_(values, updates, alpha=-learning_rate)

    def condition_numbers(self, matrix: Matrix, attention: Any) -> tuple[Tensor, Tensor] | None:
        """Return the condition numbers of the damped input factor, [heads] each, without and with the root in use.

        None if the direction has no preconditioner, or no factor yet.
        """
        return None


def in_batches(keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> list[Tensor]:
    """Return one update per matrix, computed in one batch for each distinct key.

    Args:
        keys: of the matrices, in order.
        compute: maps the indices of a batch to its stacked updates.
    """
    batches: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        batches.setdefault(key, []).append(index)
    updates: list[Tensor] = [torch.empty(0)] * len(keys)
    for indices in batches.values():
        for index, update in zip(indices, compute(indices).unbind(), strict=True):
            updates[index] = update
    return updates


def factor_statistics(attention: Statistics | None) -> FactorStatistics:
    """Return the statistics as those that keep factors. Raises: ValueError if they do not."""
    if not hasattr(attention, "average"):
        raise ValueError("the direction needs Kronecker factors: give the optimizer a FisherProbe")
    return attention  # type: ignore[return-value]
