"""Learning-rate schedules: a factor that is a pure function of the step."""

import math
from typing import Annotated, Literal

from pydantic import Field

from natattn.config.base import Settings

Fraction = Annotated[float, Field(ge=0, le=1)]


class CosineSettings(Settings):
    """Linear warm-up, then half a cosine from 1 down to ``final``."""

    kind: Literal["cosine"]
    warmup_fraction: Fraction
    final: Fraction

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate at ``step`` of ``steps`` (0-based)."""
        warmup_steps = int(self.warmup_fraction * steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class WSDSettings(Settings):
    """Warm-up, stable, decay: linear warm-up, constant, then linear down to ``final`` at the end."""

    kind: Literal["wsd"]
    warmup_fraction: Fraction
    decay_fraction: Fraction
    final: Fraction

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate at ``step`` of ``steps`` (0-based)."""
        warmup_steps = int(self.warmup_fraction * steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        decay_steps = self.decay_fraction * steps
        into_decay = step - (steps - decay_steps)
        if into_decay <= 0:
            return 1.0
        return 1.0 - (1.0 - self.final) * min(1.0, into_decay / decay_steps)


class ConstantSettings(Settings):
    """Linear warm-up, then constant."""

    kind: Literal["constant"]
    warmup_steps: int = Field(ge=0)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor at ``step``; it does not depend on ``steps``, so a run can be extended."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0


ScheduleSettings = Annotated[CosineSettings | WSDSettings | ConstantSettings, Field(discriminator="kind")]
