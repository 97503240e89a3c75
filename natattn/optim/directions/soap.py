"""SOAP (Vyas et al. 2024): Adam in the eigenbases of Shampoo's factors; and its orthogonalised form, soap_muon."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.attention.energy import working_dtype
from natattn.config.base import Decay, Positive, Settings
from natattn.optim.directions.base import ADAM_RMS, Direction, Place, State, Statistics
from natattn.optim.directions.orthogonalise import NewtonSchulzDtype, orthogonalise


class SoapSettings(Settings):
    """u = Q_L (m′ / (√v′ + eps)) Q_Rᵀ, with m′ and v′ Adam's averages in the eigenbases Q_L, Q_R of GGᵀ and GᵀG.

    ``orthogonalise``: the result is orthogonalised by Newton–Schulz and scaled to the root mean square of an Adam
    update (soap_muon). The bases turn by one step of orthogonal iteration every ``refresh_every`` steps.
    """

    kind: Literal["soap"]
    betas: tuple[Decay, Decay]
    factor_decay: Decay
    eps: Positive
    refresh_every: int = Field(ge=1)
    orthogonalise: bool
    newton_schulz_steps: int = Field(ge=1, lt=100, default=5)
    newton_schulz_dtype: NewtonSchulzDtype = "bfloat16"

    def build(self) -> "Soap":
        """The direction itself."""
        return Soap(self)


class Soap(Direction):
    """SOAP; the first gradient only starts the factors, so that the first update is zero, as in its reference.

    State memory: two numbers per element, and per matrix 2·rows² + 2·columns².
    """

    def __init__(self, settings: SoapSettings) -> None:
        self.settings = settings

    def initial_state(self, parameter: Tensor) -> State:
        """Zero averages and factors; bases come with the first gradient."""
        (rows, columns), dtype = parameter.shape, working_dtype(parameter)
        return {
            "host_step": torch.zeros((), dtype=torch.int64),
            "exp_avg": parameter.new_zeros((rows, columns), dtype=dtype),
            "exp_avg_sq": parameter.new_zeros((rows, columns), dtype=dtype),
            "left": parameter.new_zeros((rows, rows), dtype=dtype),
            "right": parameter.new_zeros((columns, columns), dtype=dtype),
            "failed": torch.zeros((), dtype=torch.int64, device=parameter.device),
        }

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The updates, in batches of equal shapes and ages."""
        updates: list[Tensor] = [torch.empty(0)] * len(gradients)
        batches: dict[tuple[torch.Size, int], list[int]] = {}
        for index, (gradient, state) in enumerate(zip(gradients, states, strict=True)):
            batches.setdefault((gradient.shape, int(state["host_step"])), []).append(index)
        for (_, step), members in batches.items():
            names = [name for name in states[members[0]] if name != "host_step"]
            batch = {name: torch.stack([states[index][name] for index in members]) for name in names}
            gradient = torch.stack([gradients[index].to(working_dtype(gradients[index])) for index in members])
            result = self._update(gradient, batch, step)
            for place, index in enumerate(members):
                states[index].update({name: value[place].clone() for name, value in batch.items()})
                states[index]["host_step"] += 1
                updates[index] = result[place].to(gradients[index].dtype)
        return updates

    def _update(self, gradient: Tensor, state: State, step: int) -> Tensor:
        """One update of a batch [V, rows, columns]; ``state`` holds the stacked states."""
        settings = self.settings
        beta1, beta2 = settings.betas
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
        update = left @ (mean / (root_mean_square + settings.eps)) @ right.mT
        # The factors take this gradient after it was used, so that it does not choose its own basis.
        self._enter(gradient, state)
        if step % settings.refresh_every == 0:
            self._turn_bases(state)
        if not settings.orthogonalise:
            return update
        update = orthogonalise(update, settings.newton_schulz_steps, settings.newton_schulz_dtype)
        return update * (ADAM_RMS / update.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-30))

    def _enter(self, gradient: Tensor, state: State) -> None:
        """A gradient that is not finite leaves its matrix's factors as they were, and is counted."""
        finite = gradient.isfinite().all(-1).all(-1)
        state["failed"] = state["failed"] + ~finite
        weight = finite.to(gradient.dtype)[:, None, None] * (1 - self.settings.factor_decay)
        gradient = torch.where(finite[:, None, None], gradient, 0.0)
        state["left"].lerp_(gradient @ gradient.mT, weight)
        state["right"].lerp_(gradient.mT @ gradient, weight)

    def _turn_bases(self, state: State) -> None:
        """One step of orthogonal iteration per side, sorted by eigenvalue; Adam's averages follow."""
        mean = state["left_basis"] @ state["exp_avg"] @ state["right_basis"].mT
        for side, dim in (("left", -2), ("right", -1)):
            basis, order = _turned(state[side], state[f"{side}_basis"])
            state[f"{side}_basis"] = basis
            index = order[:, :, None] if dim == -2 else order[:, None, :]
            state["exp_avg_sq"] = torch.take_along_dim(state["exp_avg_sq"], index, dim)
        state["exp_avg"] = state["left_basis"].mT @ mean @ state["right_basis"]


def _eigenbasis(factor: Tensor) -> Tensor:
    """Eigenvectors by falling eigenvalue, in float64 on the CPU."""
    precision = torch.float64 if factor.device.type == "cpu" else torch.float32
    _, vectors = torch.linalg.eigh(factor.to(precision))
    basis: Tensor = vectors.flip(-1).to(factor.dtype)
    return basis


def _turned(factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """QR of the factor times the sorted basis, and the order it was sorted in."""
    values = (basis * (factor @ basis)).sum(-2)
    order = values.argsort(dim=-1, descending=True)
    basis = torch.take_along_dim(basis, order[:, None, :], -1)
    orthogonal, _ = torch.linalg.qr(factor @ basis)
    return orthogonal, order
