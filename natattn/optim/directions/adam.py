"""Adam (Kingma and Ba 2015) with decoupled weight decay (AdamW, Loshchilov and Hutter 2019)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from natattn.config.base import Decay, Positive
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.matrix import Matrix, State


class Adam(Direction):
    """u = m̂ / (√v̂ + eps), with m̂ and v̂ the bias-corrected averages of the gradient and of its square.

    State memory: two numbers per element.
    """

    elementwise: ClassVar[bool] = True

    kind: Literal["adam"] = "adam"
    betas: tuple[Decay, Decay]
    eps: Positive

    def initial_state(self, value: Tensor) -> State:
        """Return zero averages and step 0, a float32 scalar on the parameter's device, as the fused kernel needs it."""
        return {
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": torch.zeros_like(value),
            "step": torch.zeros((), dtype=torch.float32, device=value.device),
        }

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the updates, written as the equation reads; ``step`` computes the same with a fused kernel."""
        beta1, beta2 = self.betas
        updates = []
        for matrix in matrices:
            gradient, state = matrix.gradient, matrix.state
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            mean = state["exp_avg"] / (1 - beta1 ** state["step"])
            mean_square = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
            updates.append(mean / (mean_square.sqrt() + self.eps))
        return updates

    def step(
        self, matrices: Sequence[Matrix], attention: Statistics | None, *, learning_rate: float, weight_decay: float
    ) -> None:
        """Step with PyTorch's fused AdamW kernel, which reads memory in order and so cannot take slices of a weight."""
        values = [matrix.value for matrix in matrices]
        if not all(map(Tensor.is_contiguous, values)):
            super().step(matrices, attention, learning_rate=learning_rate, weight_decay=weight_decay)
            return
        adamw(
            values,
            [matrix.gradient for matrix in matrices],
            [matrix.state["exp_avg"] for matrix in matrices],
            [matrix.state["exp_avg_sq"] for matrix in matrices],
            [],
            [matrix.state["step"] for matrix in matrices],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )
