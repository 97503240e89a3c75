"""The published mechanism of paper A: a block's gradient, scaled by its mean absolute attention energy."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.optim.directions.adam import AdamSettings
from natattn.optim.directions.base import Direction, State, Statistics
from natattn.settings import Settings


class EnergyScaledSettings(Settings):
    """The inner direction, fed with g · (1 + tanh(energy_scale · mean|E|))."""

    kind: Literal["energy_scaled"]
    energy_scale: float = Field(ge=0)
    inner: AdamSettings

    def build(self) -> "EnergyScaled":
        """The direction itself."""
        return EnergyScaled(self.energy_scale, self.inner.build())


def energy_factor(mean_absolute_energy: Tensor, energy_scale: float) -> Tensor:
    """1 + tanh(energy_scale · mean|E|), between 1 and 2 (Attention-Informed Optimization, as its code has it)."""
    return 1 + torch.tanh(energy_scale * mean_absolute_energy)


class EnergyScaled(Direction):
    """Every gradient of a block times the block's energy factor, then the inner direction; outside blocks factor 1.

    AdamW is invariant to a constant scale of the gradient, so that with it only changes of the factor in time matter.
    """

    needs_statistics = True

    def __init__(self, energy_scale: float, inner: Direction) -> None:
        self.energy_scale = energy_scale
        self.inner = inner
        self.elementwise = inner.elementwise

    def initial_state(self, parameter: Tensor) -> State:
        """That of the inner direction."""
        return self.inner.initial_state(parameter)

    def factors(self, statistics: Statistics) -> dict[int, Tensor]:
        """Energy factor of every observed layer."""
        return {
            layer: energy_factor(statistics.mean_absolute_energy(layer), self.energy_scale)
            for layer in statistics.layers
        }

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        layers: Sequence[int | None],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The inner direction of the scaled gradients."""
        return self.inner.updates(self._scaled(gradients, layers, statistics), states, layers, statistics)

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
        """The inner direction's step, with the scaled gradients."""
        self.inner.step_(
            parameters,
            self._scaled(gradients, layers, statistics),
            states,
            layers,
            statistics,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )

    def _scaled(
        self, gradients: Sequence[Tensor], layers: Sequence[int | None], statistics: Statistics | None
    ) -> list[Tensor]:
        """New tensors: a gradient is the caller's and keeps its value."""
        if statistics is None:
            raise ValueError("energy_scaled needs attention statistics: give the optimizer a probe")
        scaled = list(gradients)
        for layer, factor in self.factors(statistics).items():
            members = [index for index, of_layer in enumerate(layers) if of_layer == layer]
            if not members:
                continue  # a group of parameters outside this block
            products = torch._foreach_mul([scaled[index] for index in members], factor)
            for index, product in zip(members, products, strict=True):
                scaled[index] = product
        return scaled
