"""Muon's direction (Jordan et al. 2024): the momentum of a matrix, orthogonalised by Newton–Schulz."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.config.base import Decay
from natattn.optim.directions.base import ADAM_RMS, Direction, Statistics, in_batches
from natattn.optim.directions.momentum import average_gradients
from natattn.optim.matrix import Matrix, State

NewtonSchulzDtype = Literal["own", "bfloat16"]

# Quintic that drives singular values of (0, 1] into about [0.7, 1.2] in five steps: steep at 0 rather than exact at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LEAST_NORM = 1e-7  # as in torch.optim.Muon; a zero matrix stays zero


class Orthogonal(Direction):
    """u = scale · orthogonalise(momentum), as ``torch.optim.Muon`` computes it, but in batches of equal shapes.

    ``match_rms`` sets scale = 0.2·√max(rows, columns), which gives the update the root mean square of an Adam update
    (Liu et al. 2025), so that one learning rate serves both; otherwise it is √max(1, rows / columns).
    State memory: one number per element.
    """

    kind: Literal["orthogonal"] = "orthogonal"
    momentum: Decay
    nesterov: bool
    newton_schulz_steps: int = Field(ge=1, lt=100)
    match_rms: bool

    def initial_state(self, value: Tensor) -> State:
        """Return zero momentum."""
        return {"momentum": torch.zeros_like(value)}

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the momenta, orthogonalised in bfloat16 and scaled."""
        momenta = average_gradients(matrices, self.momentum, nesterov=self.nesterov)

        def orthogonalised(indices: list[int]) -> Tensor:
            rows, columns = momenta[indices[0]].shape
            scale = ADAM_RMS * math.sqrt(max(rows, columns)) if self.match_rms else math.sqrt(max(1, rows / columns))
            batch = torch.stack([momenta[index] for index in indices]).bfloat16()
            # Unlike ``orthogonalise``, Muon divides by the norm alone, not by the largest entry first.
            norm = torch.linalg.matrix_norm(batch, keepdim=True).clamp_min(_LEAST_NORM)
            return newton_schulz(batch / norm, self.newton_schulz_steps).to(momenta[indices[0]].dtype) * scale

        return in_batches([(momentum.shape, momentum.dtype) for momentum in momenta], orthogonalised)


def orthogonalise(matrices: Tensor, steps: int, dtype: NewtonSchulzDtype = "own") -> Tensor:
    """Return approximately U Vᵀ for matrices U Σ Vᵀ: X ← aX + (bXXᵀ + c(XXᵀ)²)X from X = M / ‖M‖_F.

    A zero matrix stays zero. Rotations pass through: orthogonalise(M Q) = orthogonalise(M) Q.

    Args:
        matrices: [..., rows, columns].
        steps: five bring singular values that are not tiny into about [0.7, 1.2].
        dtype: of the products: that of ``matrices``, or bfloat16 as in Muon. Its rounding errors are small beside what
            the steps leave, and it is several times faster on processors that multiply in it.

    Returns: [..., rows, columns] in the dtype of ``matrices``.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    X: Tensor = matrices.mT if is_tall else matrices
    # Divide by the largest entry first: the squares of tiny entries underflow, those of huge ones overflow.
    X = X / _or_one(X.abs().amax((-2, -1), keepdim=True))
    X = X / _or_one(torch.linalg.matrix_norm(X, keepdim=True))
    batch = X.flatten(0, -3) if X.ndim > 3 else X.reshape(-1, *X.shape[-2:])
    if dtype == "bfloat16":
        batch = batch.bfloat16()
    X = newton_schulz(batch, steps).to(matrices.dtype).view(X.shape)
    return X.mT if is_tall else X


def newton_schulz(matrices_VRC: Tensor, steps: int) -> Tensor:
    """Apply X ← aX + (bXXᵀ + c(XXᵀ)²)X ``steps`` times, in X's dtype, to a batch with singular values of at most 1."""
    a, b, c = COEFFICIENTS
    is_tall = matrices_VRC.shape[-2] > matrices_VRC.shape[-1]
    batch = matrices_VRC.mT if is_tall else matrices_VRC
    for _ in range(steps):
        gram = batch @ batch.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        batch = torch.baddbmm(batch, polynomial, batch, beta=a)
    return batch.mT if is_tall else batch


def at_adam_rms(updates: Tensor) -> Tensor:
    """Return a batch of updates [V, rows, columns], each scaled to the root mean square of an Adam update."""
    return updates * (ADAM_RMS / updates.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-30))


def _or_one(scale: Tensor) -> Tensor:
    return scale.masked_fill(scale == 0, 1.0)
