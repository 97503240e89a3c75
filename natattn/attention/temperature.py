"""Temperatures of the pattern softmax(E/T), as pure functions of the step."""

import math
from typing import Annotated, Literal

from pydantic import Field

from natattn.settings import Settings

Positive = Annotated[float, Field(gt=0)]


class ConstantTemperature(Settings):
    """The same temperature in every head, layer and step."""

    kind: Literal["constant"]
    value: Positive

    def temperature(self, step: int, steps: int) -> float:
        """T at ``step`` of ``steps`` (0-based)."""
        return self.value


class PerHeadTemperature(Settings):
    """A temperature for each head, the same in every layer and step."""

    kind: Literal["per_head"]
    values: tuple[Positive, ...] = Field(min_length=1)

    def temperature(self, step: int, steps: int) -> tuple[float, ...]:
        """T of each head at ``step`` of ``steps`` (0-based)."""
        return self.values


class InverseSquareRootTemperature(Settings):
    """τ₀/√t with t = step + 1, so that the first step has τ₀; never below ``floor``."""

    kind: Literal["inverse_sqrt"]
    initial: Positive
    floor: Positive

    def temperature(self, step: int, steps: int) -> float:
        """T at ``step`` of ``steps`` (0-based); does not depend on ``steps``."""
        return max(self.floor, self.initial / math.sqrt(step + 1))


class LinearTemperature(Settings):
    """From ``initial`` at the first step to ``final`` at the last, on a straight line."""

    kind: Literal["linear"]
    initial: Positive
    final: Positive

    def temperature(self, step: int, steps: int) -> float:
        """T at ``step`` of ``steps`` (0-based)."""
        return self.initial + (self.final - self.initial) * _progress(step, steps)


class CosineTemperature(Settings):
    """From ``initial`` at the first step to ``final`` at the last, along half a cosine."""

    kind: Literal["cosine"]
    initial: Positive
    final: Positive

    def temperature(self, step: int, steps: int) -> float:
        """T at ``step`` of ``steps`` (0-based)."""
        return self.final + (self.initial - self.final) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))


def _progress(step: int, steps: int) -> float:
    """0 at the first step, 1 at the last and after it."""
    return min(1.0, step / max(1, steps - 1))


TemperatureSettings = Annotated[
    ConstantTemperature | PerHeadTemperature | InverseSquareRootTemperature | LinearTemperature | CosineTemperature,
    Field(discriminator="kind"),
]
