"""Effect of preconditioning on the spectrum of the attention-Fisher information of W_Q (claim F4).

The damped Fisher F + λI has λ = ``DAMPING``² of F's mean eigenvalue. What a preconditioner P makes of it is the
spectrum of P^(−1/2) (F + λI) P^(−1/2), where all eigenvalues would be equal for a perfect one. The Kronecker product is
damped as the optimizers damp it (``natattn.fisher.roots``): (S + δ s̄ I) ⊗ (A + δ ā I), which holds δ² s̄ ā I too.

Only the largest eigenvalues are computed (Lanczos, ``scipy.sparse.linalg.eigsh``); the two measures do not need the
smallest, whose reciprocal a condition number would take from the damping anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natattn.analysis.fisher_errors import DIAGONAL, IDENTITY, INPUT, KRONECKER, QueryRows
from natattn.fisher.roots import inverse_square_root

DAMPING = 0.3  # δ of the optimizers in conf/optim
PRECONDITIONERS = (IDENTITY, DIAGONAL, INPUT, KRONECKER)
DENSE_UP_TO = 1024  # parameters
LARGEST = 24
PROBES = 16
TOLERANCE = 1e-3

Linear = Callable[[Tensor], Tensor]  # [..., D, N] → the same shape


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The spectrum of a preconditioned, damped Fisher.

    Attributes:
        largest: its largest eigenvalues in units of their mean, in falling order; [0] is λ_max / mean eigenvalue.
        evenness: (mean eigenvalue)² / mean squared eigenvalue, in (0, 1]: 1 where all are equal; times P it is the
            number of directions that the spectrum is as wide as.
    """

    largest: NDArray[np.float64]
    evenness: float


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """P^(−1/2), by its two sides or by its diagonal.

    Attributes:
        left: S^(−1/2) [D, D]; None for the identity.
        right: A^(−1/2) [N, N]; None for the identity.
        diagonal: [D, N]; None for none.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    diagonal: Tensor | None = None

    def whiten(self, matrix: Tensor) -> Tensor:
        """P^(−1/2) V for V [..., D, N]."""
        matrix = matrix if self.left is None else self.left @ matrix
        matrix = matrix if self.right is None else matrix @ self.right
        return matrix if self.diagonal is None else matrix * self.diagonal

    def trace(self, rows: QueryRows, damping: Tensor) -> Tensor:
        """tr P^(−1/2) (F + λI) P^(−1/2)."""
        inputs, covariances = rows.inputs.flatten(0, 1), rows.covariances.flatten(0, 1)
        dim, width = covariances.shape[-1], inputs.shape[-1]
        if self.diagonal is not None:
            return (self.diagonal.square() * (_diagonal(rows) + damping)).sum()
        if self.right is not None:
            inputs = inputs @ self.right
        traces = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
        if self.left is not None:
            traces = (covariances * (self.left @ self.left)).sum((-2, -1))
        left, right = (
            torch.as_tensor(float(size)) if root is None else root.square().sum()
            for root, size in ((self.left, dim), (self.right, width))
        )
        return (traces * inputs.square().sum(-1)).mean() + damping * left * right


def preconditioners(rows: QueryRows, damping: float = DAMPING) -> dict[str, Preconditioner]:
    """Return the preconditioners of ``PRECONDITIONERS``, from the factors of the rows.

    Args:
        damping: δ, in units of each factor's mean eigenvalue; the diagonal takes δ² of F's.
    """
    inputs, covariances = rows.inputs.flatten(0, 1), rows.covariances.flatten(0, 1)
    factors = covariances.mean(0), inputs.mT @ inputs / len(inputs)
    left, right = (inverse_square_root(factor[None], damping)[0][0] for factor in factors)
    diagonal = _diagonal(rows)
    return {
        IDENTITY: Preconditioner(),
        DIAGONAL: Preconditioner(diagonal=(diagonal + damping**2 * diagonal.mean()).rsqrt()),
        INPUT: Preconditioner(right=right),
        KRONECKER: Preconditioner(left=left, right=right),
    }


def conditioning(
    rows: QueryRows,
    preconditioner: Preconditioner,
    *,
    damping: float = DAMPING,
    dense_up_to: int = DENSE_UP_TO,
    seed: int,
) -> Conditioning:
    """The spectrum of P^(−1/2) (F + λI) P^(−1/2) for F = mean_i C_i ⊗ x_i x_iᵀ and λ = damping² of its mean eigenvalue.

    Args:
        rows: other rows than the preconditioner was made from, or it has seen what it is tried on.
        dense_up_to: parameters up to which all eigenvalues are computed.
        seed: of the Lanczos start and of the probes of the mean squared eigenvalue.
    """
    inputs, covariances = rows.inputs.flatten(0, 1), rows.covariances.flatten(0, 1)
    size = rows.parameters
    shift = damping**2 * Preconditioner().trace(rows, inputs.new_zeros(())) / size

    def apply(matrix: Tensor) -> Tensor:
        white = preconditioner.whiten(matrix)
        # Σ_r C_r (V x_r) x_rᵀ: one small product for each row.
        products = covariances @ (inputs @ white.mT)[..., None]
        return preconditioner.whiten(products[..., 0].mT @ inputs / len(inputs) + shift * white)

    if size <= dense_up_to:
        identity = torch.eye(size, dtype=inputs.dtype).view(size, covariances.shape[-1], -1)
        values = torch.linalg.eigvalsh(torch.stack([apply(unit).flatten() for unit in identity]).double())
        mean = values.mean()
        return Conditioning((values.flip(0) / mean)[:LARGEST].numpy(), float(mean**2 / values.square().mean()))
    mean = float(preconditioner.trace(rows, shift)) / size
    shape = torch.Size((covariances.shape[-1], inputs.shape[-1]))
    largest, vectors = _largest(apply, shape, inputs.dtype, seed)
    mean_square = (float((largest**2).sum()) + _remaining_square(apply, vectors, shape, seed)) / size
    return Conditioning(largest / mean, mean**2 / mean_square)


def _largest(apply: Linear, shape: torch.Size, dtype: torch.dtype, seed: int) -> tuple[NDArray[np.float64], Tensor]:
    """Eigenvalues in falling order, and eigenvectors as columns [P, k]."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = shape.numel()

    def multiply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return apply(torch.from_numpy(vector).to(dtype).view(shape)).flatten().double().numpy()

    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    start = np.random.default_rng(seed).normal(size=size)
    values, vectors = eigsh(operator, k=min(LARGEST, size - 1), which="LA", v0=start, tol=TOLERANCE)
    order = np.argsort(values)[::-1]
    return values[order], torch.from_numpy(vectors[:, order].copy()).to(dtype)


def _remaining_square(apply: Linear, vectors: Tensor, shape: torch.Size, seed: int) -> float:
    """Sum of the squares of the eigenvalues whose vectors are not given: Hutchinson's estimate, on their complement."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(PROBES):
        probe = torch.randn(shape.numel(), generator=generator, dtype=torch.float64).to(vectors.dtype)
        probe = probe - vectors @ (vectors.mT @ probe)
        total += float(apply(probe.view(shape)).square().sum())
    return total / PROBES


def _diagonal(rows: QueryRows) -> Tensor:
    """Diagonal of F, [D, N]."""
    diagonals = rows.covariances.flatten(0, 1).diagonal(dim1=-2, dim2=-1)
    return diagonals.mT @ rows.inputs.flatten(0, 1).square() / len(diagonals)
