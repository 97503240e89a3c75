"""The mechanism of *Attention-Informed Optimization* (AIO): a block's gradient or update scaled by its energy."""

from collections.abc import Sequence
from copy import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.optim.directions.adam import Adam
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.directions.orthogonal import Orthogonal
from natattn.optim.matrix import Matrix, State


def energy_factor(mean_absolute_energy: Tensor, energy_scale: float) -> Tensor:
    """Return 1 + tanh(energy_scale · mean|E|), between 1 and 2 (AIO, as its code has it)."""
    return 1 + torch.tanh(energy_scale * mean_absolute_energy)


class EnergyScaled(Direction):
    """An inner direction whose gradients or updates are scaled by the block's factor 1 + tanh(energy_scale · mean|E|).

    ``of``: gradient, as published, or update, which makes the factor a step size per block. ``plain_share`` is the
    share α of the update that stays unscaled, α·u + (1 − α)·factor·u (AIO's mixture for orthogonalised updates).
    The factor is 1 outside blocks and in a block that the step did not reach. AdamW is invariant to a constant scale of
    the gradient, so with ``of: gradient`` only changes of the factor over time matter.
    """

    quantities: ClassVar[tuple[str, ...]] = ("mean_absolute_energy",)

    kind: Literal["energy_scaled"] = "energy_scaled"
    energy_scale: float = Field(ge=0)
    of: Literal["gradient", "update"] = "gradient"
    plain_share: float = Field(ge=0, le=1, default=0.0)
    inner: Annotated[Adam | Orthogonal, Field(discriminator="kind")]

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """Return whether the inner direction is elementwise."""
        return self.inner.elementwise

    def check(self, matrix: Matrix) -> None:
        """See ``Direction``; the inner direction decides."""
        self.inner.check(matrix)

    def initial_state(self, value: Tensor) -> State:
        """Return that of the inner direction."""
        return self.inner.initial_state(value)

    def energy_factors(self, attention: Statistics) -> dict[int, Tensor]:
        """Return the factor of every observed layer.

        Raises: RuntimeError if no forward pass has been recorded.
        """
        share = self.plain_share
        return {
            layer: share + (1 - share) * energy_factor(attention.mean_absolute_energy(layer), self.energy_scale)
            # If no layer is recorded, reading the first raises the error that explains it.
            for layer in attention.recorded_layers or attention.layers[:1]
        }

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the inner direction's updates of scaled gradients, or its updates scaled."""
        if self.of == "gradient":
            return self.inner.updates(self._with_scaled_gradients(matrices, attention), attention)
        return self._scaled(self.inner.updates(matrices, attention), matrices, attention)

    def step(
        self, matrices: Sequence[Matrix], attention: Statistics | None, *, learning_rate: float, weight_decay: float
    ) -> None:
        """See ``Direction``; with scaled gradients, the inner direction's own step."""
        step = super().step
        if self.of == "gradient":
            matrices, step = self._with_scaled_gradients(matrices, attention), self.inner.step
        step(matrices, attention, learning_rate=learning_rate, weight_decay=weight_decay)

    def _with_scaled_gradients(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Matrix]:
        scaled = [copy(matrix) for matrix in matrices]
        gradients = self._scaled([matrix.gradient for matrix in matrices], matrices, attention)
        for matrix, gradient in zip(scaled, gradients, strict=True):
            matrix.gradient = gradient
        return scaled

    def _scaled(
        self, tensors: Sequence[Tensor], matrices: Sequence[Matrix], attention: Statistics | None
    ) -> list[Tensor]:
        """Return new tensors: the gradients belong to the parameters and keep their values."""
        if attention is None:
            raise ValueError("energy_scaled needs attention statistics: give the optimizer a probe")
        scaled = list(tensors)
        for layer, factor in self.energy_factors(attention).items():
            indices = [index for index, matrix in enumerate(matrices) if matrix.layer == layer]
            if not indices:
                continue  # this parameter group has no part in the block
            chosen = [scaled[index] for index in indices]
            if factor.ndim:  # one factor for each of several stacked models
                products = [tensor * factor.view(-1, *[1] * (tensor.ndim - 1)) for tensor in chosen]
            else:
                products = list(torch._foreach_mul(chosen, factor))
            for index, product in zip(indices, products, strict=True):
                scaled[index] = product
        return scaled
