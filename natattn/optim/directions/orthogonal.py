"""Muon's direction: the momentum of a matrix, orthogonalised (Jordan et al. 2024)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.config.base import Decay, Settings
from natattn.optim.directions.base import ADAM_RMS, Direction, Place, State, Statistics
from natattn.optim.directions.momentum import average_gradients
from natattn.optim.directions.orthogonalise import newton_schulz

_LEAST_NORM = 1e-7  # as in torch.optim.Muon; a zero matrix stays zero


class OrthogonalSettings(Settings):
    """u = scale · orthogonalise(momentum), per matrix.

    ``match_rms`` multiplies by 0.2·√max(rows, columns), which gives the update the root mean square of an Adam update
    (Liu et al. 2025), so that one learning rate serves both.
    """

    kind: Literal["orthogonal"]
    momentum: Decay
    nesterov: bool
    newton_schulz_steps: int = Field(ge=1, lt=100)
    match_rms: bool

    def build(self) -> "Orthogonal":
        """The direction itself."""
        return Orthogonal(self)


class Orthogonal(Direction):
    """What ``torch.optim.Muon`` computes matrix by matrix, here in batches of equal shapes; shown (outputs, inputs)."""

    def __init__(self, settings: OrthogonalSettings) -> None:
        self.settings = settings

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
        """Momenta, orthogonalised in bfloat16 and scaled."""
        settings = self.settings
        momenta = average_gradients(gradients, states, settings.momentum, nesterov=settings.nesterov)
        batches: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for index, momentum in enumerate(momenta):
            batches.setdefault((momentum.shape, momentum.dtype), []).append(index)
        updates: list[Tensor] = [torch.empty(0)] * len(momenta)
        for (shape, dtype), members in batches.items():
            batch = torch.stack([momenta[index] for index in members]).bfloat16()
            # Not by the largest entry first, as ``orthogonalise`` does: Muon divides by the norm alone.
            norm = torch.linalg.matrix_norm(batch, keepdim=True).clamp_min(_LEAST_NORM)
            orthogonal = newton_schulz(batch / norm, settings.newton_schulz_steps).to(dtype) * self._scale(shape)
            for index, update in zip(members, orthogonal.unbind(), strict=True):
                updates[index] = update
        return updates

    def _scale(self, shape: torch.Size) -> float:
        rows, columns = shape
        if self.settings.match_rms:
            return ADAM_RMS * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))
