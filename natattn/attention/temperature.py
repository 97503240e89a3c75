"""Temperatures of the pattern softmax(E/T), as pure functions of the step."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.attention.exponents import Exponents
from natattn.config.base import Positive, Settings


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


class CriticalTemperature(Settings):
    """T_c(k) = T_0 (d/768)^(−α_k) of every head k in a model of width d, the same in every layer and step."""

    kind: Literal["critical"]
    initial: Positive  # T_0
    exponents: Exponents  # α, one for all heads or one for each, or an analysis.json that has them


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


def critical_temperatures(
    exponents: float | tuple[float, ...], width: int, heads: int, temperature: float = 1.0
) -> Tensor:
    """T_c(k) = T_0 (d/768)^(−α_k) of every head, float32 [heads] (Criticality and Phase Transitions, 3.2).

    Raises: ValueError when there are several exponents, but not one for each head.
    """
    values = torch.as_tensor(exponents, dtype=torch.float32).reshape(-1)
    if len(values) not in (1, heads):
        raise ValueError(f"{len(values)} exponents for {heads} heads")
    return (temperature * (width / 768) ** -values).expand(heads)


def _progress(step: int, steps: int) -> float:
    """0 at the first step, 1 at the last and after it."""
    return min(1.0, step / max(1, steps - 1))


TemperatureSettings = Annotated[
    ConstantTemperature
    | PerHeadTemperature
    | CriticalTemperature
    | InverseSquareRootTemperature
    | LinearTemperature
    | CosineTemperature,
    Field(discriminator="kind"),
]
