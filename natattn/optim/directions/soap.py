"""SOAP (Vyas et al. 2024): Adam in the eigenbases of Shampoo's factors; and its orthogonalised form, soap_muon."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.attention.energy import working_dtype
from natattn.config.base import Decay, Positive
from natattn.optim.directions.base import Direction, Statistics, in_batches
from natattn.optim.directions.orthogonal import NewtonSchulzDtype, at_adam_rms, orthogonalise
from natattn.optim.matrix import Matrix, State


class Soap(Direction):
    """u = Q_L (m′ / (√v′ + eps)) Q_Rᵀ, with m′ and v′ Adam's averages in the eigenbases Q_L, Q_R of GGᵀ and GᵀG.

    If ``orthogonalise``, u is orthogonalised by Newton–Schulz and scaled to the root mean square of an Adam update
    (soap_muon). The bases take one step of orthogonal iteration every ``refresh_every`` steps. The first gradient only
    starts the factors, so the first update is zero, as in the reference implementation.
    State memory: two numbers per element, and per matrix 2·rows² + 2·columns².
    """

    kind: Literal["soap"] = "soap"
    betas: tuple[Decay, Decay]
    factor_decay: Decay
    eps: Positive
    refresh_every: int = Field(ge=1)
    orthogonalise: bool
    newton_schulz_steps: int = Field(ge=1, lt=100, default=5)
    newton_schulz_dtype: NewtonSchulzDtype = "bfloat16"

    def initial_state(self, value: Tensor) -> State:
        """Return zero averages and factors; the first gradient adds the bases."""
        (rows, columns), dtype = value.shape, working_dtype(value)
        return {
            "host_step": torch.zeros((), dtype=torch.int64),
            "exp_avg": value.new_zeros((rows, columns), dtype=dtype),
            "exp_avg_sq": value.new_zeros((rows, columns), dtype=dtype),
            "left": value.new_zeros((rows, rows), dtype=dtype),
            "right": value.new_zeros((columns, columns), dtype=dtype),
            "failed": torch.zeros((), dtype=torch.int64, device=value.device),
        }

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the updates, in batches of equal shapes and ages."""

        def batch_update(indices: list[int]) -> Tensor:
            members = [matrices[index] for index in indices]
            names = [name for name in members[0].state if name != "host_step"]
            state = {name: torch.stack([matrix.state[name] for matrix in members]) for name in names}
            gradient = torch.stack([matrix.gradient.to(working_dtype(matrix.gradient)) for matrix in members])
            updates = self._update(gradient, state, int(members[0].state["host_step"]))
            for index, matrix in enumerate(members):
                matrix.state.update({name: value[index].clone() for name, value in state.items()})
                matrix.state["host_step"] += 1
            return updates.to(members[0].gradient.dtype)

        return in_batches(
            [(matrix.gradient.shape, matrix.gradient.dtype, int(matrix.state["host_step"])) for matrix in matrices],
            batch_update,
        )

    def _update(self, gradient: Tensor, state: State, step: int) -> Tensor:
        """Return the updates of a batch [V, rows, columns]; ``state`` holds the stacked states and is changed."""
        beta1, beta2 = self.betas
        if step == 0:
            self._enter(gradient, state)
            state["left_basis"], state["right_basis"] = (_eigenbasis(state[side]) for side in ("left", "right"))
            return torch.zeros_like(gradient)
        left, right = state["left_basis"], state["right_basis"]
        turned = left.mT @ gradient @ right
        state["exp_avg"].lerp_(turned, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        mean = state["exp_avg"] / (1 - beta1**step)
        root_mean_square = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt()
        update = left @ (mean / (root_mean_square + self.eps)) @ right.mT
        # The factors take this gradient after it was used, so that it does not choose its own basis.
        self._enter(gradient, state)
        if step % self.refresh_every == 0:
            self._turn_bases(state)
        if not self.orthogonalise:
            return update
        return at_adam_rms(orthogonalise(update, self.newton_schulz_steps, self.newton_schulz_dtype))

    def _enter(self, gradient: Tensor, state: State) -> None:
        """Add gradients to the factors; one that is not finite is counted and leaves its matrix's factors unchanged."""
        finite = gradient.isfinite().all(-1).all(-1)
        state["failed"] = state["failed"] + ~finite
        weight = finite.to(gradient.dtype)[:, None, None] * (1 - self.factor_decay)
        gradient = torch.where(finite[:, None, None], gradient, 0.0)
        state["left"].lerp_(gradient @ gradient.mT, weight)
        state["right"].lerp_(gradient.mT @ gradient, weight)

    def _turn_bases(self, state: State) -> None:
        """Take one step of orthogonal iteration per side, sorted by eigenvalue, and turn Adam's averages with it."""
        mean = state["left_basis"] @ state["exp_avg"] @ state["right_basis"].mT
        for side, dim in (("left", -2), ("right", -1)):
            factor, basis = state[side], state[f"{side}_basis"]
            order = (basis * (factor @ basis)).sum(-2).argsort(dim=-1, descending=True)
            state[f"{side}_basis"], _ = torch.linalg.qr(factor @ torch.take_along_dim(basis, order[:, None, :], -1))
            index = order[:, :, None] if dim == -2 else order[:, None, :]
            state["exp_avg_sq"] = torch.take_along_dim(state["exp_avg_sq"], index, dim)
        state["exp_avg"] = state["left_basis"].mT @ mean @ state["right_basis"]


def _eigenbasis(factor: Tensor) -> Tensor:
    """Return the eigenvectors by falling eigenvalue, computed in float64 on the CPU."""
    precision = torch.float64 if factor.device.type == "cpu" else torch.float32
    _, vectors = torch.linalg.eigh(factor.to(precision))
    basis: Tensor = vectors.flip(-1).to(factor.dtype)
    return basis
