"""Damped inverses of symmetric matrices and roots of these, in batches."""

import math

import torch
from torch import Tensor

# Condition number up to which an inverse by float32 Cholesky is as good as its factors' noise allows.
FLOAT32_CONDITION = 1e5


def inverse_square_root(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """(A + damping · (tr A / dim) · I)^(−1/2) for symmetric positive semi-definite A, by eigendecomposition in float64.

    Damping is relative to the mean eigenvalue, so that c·A has the root divided by √c.

    Args:
        matrices: [..., dim, dim].
        damping: > 0, broadcastable to the batch dimensions.

    Returns: the roots, in the dtype of ``matrices``, and a bool [...] that says which are good. A root is bad where the
    matrix is not finite or has no positive trace, and where the decomposition failed; its entries mean nothing.
    """
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    damping = _per_matrix(damping, trace)
    # Against overflow as well as against nan: the trace of a usable matrix is finite, and so is every entry.
    usable = matrices.isfinite().all(-1).all(-1) & trace.isfinite() & (trace > 0)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    # One unit of mean eigenvalue: what is decomposed has trace dim, whatever the scale of the factor.
    mean = torch.where(usable, trace / matrices.shape[-1], 1.0)
    unit = torch.where(usable[..., None, None], matrices / mean[..., None, None], identity)
    damped = unit + damping[..., None, None] * identity
    roots = _by_eigh(damped, damping) / mean.sqrt()[..., None, None]
    return roots, usable & roots.isfinite().all(-1).all(-1)


def inverse_cholesky(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """R with Rᵀ R = (A + damping · (tr A / dim) · I)^(−1), lower triangular: the inverse of a Cholesky factor.

    Where only products that do not depend on the choice of the root are wanted, as in R_Sᵀ orth(R_S M R_Aᵀ) R_A (orth
    commutes with rotations), it serves as well as the symmetric root, at a fraction of the cost of an
    eigendecomposition and without waiting for the device.

    Args:
        matrices: [..., dim, dim], symmetric positive semi-definite.
        damping: > 0, broadcastable to the batch dimensions.

    Returns: R in the dtype of ``matrices``, computed in float32, or on the CPU in float64 where damping is so small
        that float32 could not tell it from rounding; and a bool [...] that says which are good, as in
        ``inverse_square_root``.
    """
    factor, mean, usable = _damped_cholesky(matrices, damping)
    identity = torch.eye(matrices.shape[-1], dtype=factor.dtype, device=matrices.device)
    root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    root = (root / mean.sqrt()).to(matrices.dtype)
    return root, usable & _is_finite(root)


def damped_inverse(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor]:
    """(A + damping · (tr A / dim) · I)^(−1); everything else as of ``inverse_cholesky``."""
    factor, mean, usable = _damped_cholesky(matrices, damping)
    inverse = (torch.cholesky_inverse(factor) / mean).to(matrices.dtype)
    return inverse, usable & _is_finite(inverse)


def _damped_cholesky(matrices: Tensor, damping: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower factor of A / mean eigenvalue + damping · I, the mean eigenvalues [..., 1, 1], and which are good [...].

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
    return torch.full_like(trace, damping)  # fills on the device: a tensor made of a number is copied, and waited for


def _is_finite(matrices: Tensor) -> Tensor:
    """Whether all entries are, [...]; a sum that overflows is as useless as an entry that did."""
    return matrices.sum((-2, -1)).isfinite()


def _by_eigh(damped: Tensor, floor: Tensor) -> Tensor:
    """In float64; all nan where LAPACK gives up."""
    try:
        values, vectors = torch.linalg.eigh(damped.double())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return torch.full_like(damped, math.nan)
    # Rounding may leave a factor slightly indefinite; the true eigenvalues are at least the damping.
    values = torch.maximum(values, floor[..., None].double())
    roots: Tensor = (vectors * values.rsqrt()[..., None, :]) @ vectors.mT
    return roots.to(damped.dtype)
