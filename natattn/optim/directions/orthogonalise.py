"""Orthogonalisation of batches of matrices by Newton–Schulz, the heart of Muon (Jordan et al. 2024)."""

from typing import Literal

import torch
from torch import Tensor

NewtonSchulzDtype = Literal["own", "bfloat16"]

# Quintic that drives singular values of (0, 1] into about [0.7, 1.2] in five steps: steep at 0 rather than exact at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int, dtype: NewtonSchulzDtype = "own") -> Tensor:
    """U Vᵀ, nearly, for matrices U Σ Vᵀ: X ← aX + (bXXᵀ + c(XXᵀ)²)X from X = M / ‖M‖_F.

    A zero matrix stays zero. Rotations pass through: orthogonalise(M Q) = orthogonalise(M) Q.

    Args:
        matrices: [..., rows, columns].
        steps: five make singular values that are neither tiny nor exact.
        dtype: of the products: that of ``matrices``, or bfloat16, which Muon takes: its noise is small beside what the
            steps leave, and it is several times faster where the processor multiplies in it.

    Returns: [..., rows, columns] in the dtype of ``matrices``.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    X: Tensor = matrices.mT if is_tall else matrices
    # By the largest entry first: the squares of tiny or huge entries are no numbers any more.
    X = X / _or_one(X.abs().amax((-2, -1), keepdim=True))
    X = X / _or_one(torch.linalg.matrix_norm(X, keepdim=True))
    batch = X.flatten(0, -3) if X.ndim > 3 else X.reshape(-1, *X.shape[-2:])
    if dtype == "bfloat16":
        batch = batch.bfloat16()
    X = newton_schulz(batch, steps).to(matrices.dtype).view(X.shape)
    return X.mT if is_tall else X


def newton_schulz(matrices_VRC: Tensor, steps: int) -> Tensor:
    """X ← aX + (bXXᵀ + c(XXᵀ)²)X, ``steps`` times, of a batch whose singular values are at most 1, in its dtype."""
    a, b, c = COEFFICIENTS
    is_tall = matrices_VRC.shape[-2] > matrices_VRC.shape[-1]
    batch = matrices_VRC.mT if is_tall else matrices_VRC
    for _ in range(steps):
        gram = batch @ batch.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        batch = torch.baddbmm(batch, polynomial, batch, beta=a)
    return batch.mT if is_tall else batch


def _or_one(scale: Tensor) -> Tensor:
    """1 in place of 0."""
    return scale.masked_fill(scale == 0, 1.0)
