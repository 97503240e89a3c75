"""Muon's direction: the momentum of a matrix, orthogonalised (Jordan et al. 2024), by PyTorch's own Muon."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from natattn.optim.directions.base import Direction, Place, State, Statistics
from natattn.settings import Settings


class OrthogonalSettings(Settings):
    """u = scale · orthogonalise(momentum), per matrix.

    ``match_rms`` multiplies by 0.2·√max(rows, columns), which gives the update the root mean square of an Adam update
    (Liu et al. 2025), so that one learning rate serves both.
    """

    kind: Literal["orthogonal"]
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    newton_schulz_steps: int = Field(ge=1, lt=100)
    match_rms: bool

    def build(self) -> "Orthogonal":
        """The direction itself."""
        return Orthogonal(self)


class Orthogonal(Direction):
    """``torch.optim.Muon`` as a direction; matrices are shown to it as (outputs, inputs)."""

    def __init__(self, settings: OrthogonalSettings) -> None:
        self.settings = settings

    def initial_state(self, parameter: Tensor) -> State:
        """Zero momentum."""
        return {"momentum": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """One step of Muon from zero at learning rate 1 and no decay lands at minus the update."""
        landings = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for landing, gradient in zip(landings, gradients, strict=True):
            landing.grad = gradient
        muon = torch.optim.Muon(
            landings,
            lr=1.0,
            weight_decay=0.0,
            momentum=self.settings.momentum,
            nesterov=self.settings.nesterov,
            ns_steps=self.settings.newton_schulz_steps,
            adjust_lr_fn="match_rms_adamw" if self.settings.match_rms else "original",
        )
        for landing, state in zip(landings, states, strict=True):
            muon.state[landing]["momentum_buffer"] = state["momentum"]
        muon.step()  # type: ignore[no-untyped-call]
        return [-landing.detach() for landing in landings]
