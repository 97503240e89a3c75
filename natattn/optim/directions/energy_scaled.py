"""The published mechanism of paper A: a block's gradient or update, scaled by its mean absolute attention energy."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.config.base import Settings
from natattn.optim.directions.adam import AdamSettings
from natattn.optim.directions.base import Direction, Place, State, Statistics
from natattn.optim.directions.orthogonal import OrthogonalSettings


class EnergyScaledSettings(Settings):
    """The inner direction, fed with or followed by the factor 1 + tanh(energy_scale · mean|E|) of the block.

    ``of``: gradient, as published, or update, a real step size per block. ``plain_share`` is the share α of the update
    that stays unscaled, α·u + (1 − α)·factor·u (paper A's mixture for orthogonalised updates).
    """

    kind: Literal["energy_scaled"]
    energy_scale: float = Field(ge=0)
    of: Literal["gradient", "update"] = "gradient"
    plain_share: float = Field(ge=0, le=1, default=0.0)
    inner: Annotated[AdamSettings | OrthogonalSettings, Field(discriminator="kind")]

    def build(self) -> "EnergyScaled":
        """The direction itself."""
        return EnergyScaled(self.energy_scale, self.inner.build(), of=self.of, plain_share=self.plain_share)


def energy_factor(mean_absolute_energy: Tensor, energy_scale: float) -> Tensor:
    """1 + tanh(energy_scale · mean|E|), between 1 and 2 (Attention-Informed Optimization, as its code has it)."""
    return 1 + torch.tanh(energy_scale * mean_absolute_energy)


class EnergyScaled(Direction):
    """Every gradient (or update) of a block times the block's energy factor; outside blocks, and in a block that the
    step has not reached, factor 1.

    AdamW is invariant to a constant scale of the gradient, so that with it only changes of the factor in time matter;
    a factor on the update is a step size.
    """

    quantities = ("mean_absolute_energy",)

    def __init__(
        self,
        energy_scale: float,
        inner: Direction,
        *,
        of: Literal["gradient", "update"] = "gradient",
        plain_share: float = 0.0,
    ) -> None:
        self.energy_scale = energy_scale
        self.inner = inner
        self.of = of
        self.plain_share = plain_share
        self.elementwise = inner.elementwise  # type: ignore[misc]

    def check(self, place: Place) -> None:
        """As the inner direction."""
        self.inner.check(place)

    def initial_state(self, parameter: Tensor) -> State:
        """That of the inner direction."""
        return self.inner.initial_state(parameter)

    def energy_factors(self, statistics: Statistics) -> dict[int, Tensor]:
        """What the gradients or updates of every observed layer are multiplied by."""
        share = self.plain_share
        return {
            layer: share + (1 - share) * energy_factor(statistics.mean_absolute_energy(layer), self.energy_scale)
            # With none recorded, reading the first says what is wrong.
            for layer in statistics.recorded_layers or statistics.layers[:1]
        }

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The inner direction of the scaled gradients, or the scaled updates."""
        if self.of == "gradient":
            return self.inner.updates(self._scaled(gradients, places, statistics), states, places, statistics)
        return self._scaled(self.inner.updates(gradients, states, places, statistics), places, statistics)

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
        """With scaled gradients, the inner direction's own step."""
        step = super().step_
        if self.of == "gradient":
            gradients, step = self._scaled(gradients, places, statistics), self.inner.step_
        step(parameters, gradients, states, places, statistics, learning_rate=learning_rate, weight_decay=weight_decay)

    def _scaled(
        self, tensors: Sequence[Tensor], places: Sequence[Place], statistics: Statistics | None
    ) -> list[Tensor]:
        """New tensors: a gradient is the caller's and keeps its value."""
        if statistics is None:
            raise ValueError("energy_scaled needs attention statistics: give the optimizer a probe")
        scaled = list(tensors)
        for layer, factor in self.energy_factors(statistics).items():
            members = [index for index, place in enumerate(places) if place.layer == layer]
            if not members:
                continue  # a group of parameters outside this block
            chosen = [scaled[index] for index in members]
            if factor.ndim:  # of stacked models, one each
                products = [tensor * factor.view(-1, *[1] * (tensor.ndim - 1)) for tensor in chosen]
            else:
                products = list(torch._foreach_mul(chosen, factor))
            for index, product in zip(members, products, strict=True):
                scaled[index] = product
        return scaled
