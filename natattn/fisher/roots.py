"""Damped inverses and inverse square roots of batches of symmetric positive semi-definite matrices.

Damping is relative to the mean eigenvalue: A + damping · (tr A / dim) · I. So c·A has the root of A divided by √c.
"""

import math

import torch
from torch import Tensor

# Condition number up to which an inverse by float32 Cholesky is as good as its factors' noise allows.
FLOAT32_CONDITION = 1e5


def inverse_square_root(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return (A + damping · (tr A / dim) · I)^(−1/2), by eigendecomposition in float64.

    Args:
        matrices: [..., dim, dim], symmetric positive semi-definite.
        damping: > 0, broadcastable to the batch dimensions.

    Returns: the roots, in the dtype of ``matrices``, and a bool [...] that is True for good ones. A root is bad if the
    matrix is not finite or has no positive trace, or if the decomposition failed; its entries are then undefined.
    """
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    floor = _per_matrix(damping, trace)
    # Finite entries may still have a trace that overflows.
    usable = matrices.isfinite().all(-1).all(-1) & trace.isfinite() & (trace > 0)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    # In units of the mean eigenvalue the matrix has trace dim, whatever the scale of the factor.
    mean = torch.where(usable, trace / matrices.shape[-1], 1.0)
    unit = torch.where(usable[..., None, None], matrices / mean[..., None, None], identity)
    damped = unit + floor[..., None, None] * identity
    try:
        values, vectors = torch.linalg.eigh(damped.double())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return torch.full_like(damped, math.nan), torch.zeros_like(usable)
    # Rounding may leave a factor slightly indefinite; the true eigenvalues are at least the damping.
    values = torch.maximum(values, floor[..., None].double())
    roots = ((vectors * values.rsqrt()[..., None, :]) @ vectors.mT).to(damped.dtype)
    roots = roots / mean.sqrt()[..., None, None]
    return roots, usable & roots.isfinite().all(-1).all(-1)


def inverse_cholesky(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return R with Rᵀ R = (A + damping · (tr A / dim) · I)^(−1), lower triangular: the inverse of a Cholesky factor.

    R_Sᵀ orth(R_S M R_Aᵀ) R_A does not depend on the choice of the root, because orth commutes with rotations. There R
    replaces the symmetric root at a fraction of the cost of an eigendecomposition, without waiting for the device.

    Args:
        matrices: [..., dim, dim], symmetric positive semi-definite.
        damping: > 0, broadcastable to the batch dimensions.

    Returns: R in the dtype of ``matrices``, and a bool [...] that is True for good ones, as in ``inverse_square_root``.
    It is computed in float32, or on the CPU in float64 if damping is too small for float32 to resolve.
    """
    factor, mean, usable = _damped_cholesky(matrices, damping)
    identity = torch.eye(matrices.shape[-1], dtype=factor.dtype, device=matrices.device)
    root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    root = (root / mean.sqrt()).to(matrices.dtype)
    return root, usable & _is_finite(root)


def damped_inverse(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return (A + damping · (tr A / dim) · I)^(−1); arguments, precision and flags as in ``inverse_cholesky``."""
    factor, mean, usable = _damped_cholesky(matrices, damping)
    inverse = (torch.cholesky_inverse(factor) / mean).to(matrices.dtype)
    return inverse, usable & _is_finite(inverse)


def _damped_cholesky(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower factor of A / mean eigenvalue + damping · I, the mean eigenvalues [..., 1, 1], and good flags.

    Large matrices are read from memory as few times as possible: at 1536 × 1536 that is most of the time.
    """
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    dim = matrices.shape[-1]
    damping = _per_matrix(damping, trace)
    # Eigenvalues are between damping and dim + damping, in units of their mean.
    is_fine = matrices.device.type == "cpu" and float(damping.min()) * FLOAT32_CONDITION < dim
    precision = torch.float64 if is_fine or matrices.dtype == torch.float64 else torch.float32
    mean = (trace / dim)[..., None, None].to(precision)
    damped = matrices.to(precision) / mean
    damped.diagonal(dim1=-2, dim2=-1).add_(damping[..., None].to(precision))
    factor, fault = torch.linalg.cholesky_ex(damped)
    return factor, mean, _is_finite(matrices) & trace.isfinite() & (trace > 0) & (fault == 0)


def _per_matrix(damping: float | Tensor, trace: Tensor) -> Tensor:
    if isinstance(damping, Tensor):
        return damping.to(trace) + torch.zeros_like(trace)
    return torch.full_like(trace, damping)  # filled on the device: copying a number from the host would synchronise


def _is_finite(matrices: Tensor) -> Tensor:
    """Return whether the sum of each matrix is finite, [...]; a sum that overflows is as useless as a bad entry."""
    return matrices.sum((-2, -1)).isfinite()
