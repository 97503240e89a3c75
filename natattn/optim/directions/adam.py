"""Adam's direction (Kingma and Ba 2015; decoupled decay: Loshchilov and Hutter 2019)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from natattn.config.base import Decay, Positive, Settings
from natattn.optim.directions.base import Direction, Place, State, Statistics


class AdamSettings(Settings):
    """u = m̂ / (√v̂ + eps)."""

    kind: Literal["adam"]
    betas: tuple[Decay, Decay]
    eps: Positive

    def build(self) -> "Adam":
        """The direction itself."""
        return Adam(self.betas, self.eps)


class Adam(Direction):
    """u = m̂ / (√v̂ + eps), m̂ and v̂ the bias-corrected averages of the gradient and of its square."""

    elementwise = True

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas = betas
        self.eps = eps

    def initial_state(self, parameter: Tensor) -> State:
        """Zero averages and step 0 (a float32 scalar on the parameter's device, as the fused kernel wants it)."""
        return {
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        }

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The direction, written as the equation reads; the readable twin of ``step_``."""
        beta1, beta2 = self.betas
        updates = []
        for gradient, state in zip(gradients, states, strict=True):
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            mean = state["exp_avg"] / (1 - beta1 ** state["step"])
            mean_square = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
            updates.append(mean / (mean_square.sqrt() + self.eps))
        return updates

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
        """The same step by PyTorch's fused AdamW kernel, which reads memory in order and so not slices of a weight."""
        if not all(parameter.is_contiguous() for parameter in parameters):
            super().step_(
                parameters,
                gradients,
                states,
                places,
                statistics,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
            )
            return
        adamw(
            list(parameters),
            list(gradients),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )
