"""Spectra of attention's weight matrices, and whether their eigenvalues have power-law tails."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.powerlaw import PowerLaw, analyse_power_law
from natattn.optim.partition import partition

ATTENTION_ROLES = ("query", "key", "value", "output")


@dataclass(frozen=True, eq=False)
class WeightSpectrum:
    """Eigenvalues of W Wᵀ / columns of one matrix, in falling order, and the power law of their density.

    ``shuffled`` is the power law of the same entries in random order: what a matrix of such entries without structure
    has (Martin and Mahoney 2021 read a tail that it does not have as learning).
    """

    layer: int
    role: str
    eigenvalues: NDArray[np.float64]
    law: PowerLaw
    shuffled: PowerLaw

    @property
    def stable_rank(self) -> float:
        """‖W‖_F² / ‖W‖₂²."""
        return float(self.eigenvalues.sum() / self.eigenvalues[0]) if self.eigenvalues[0] > 0 else 0.0


def weight_spectra(
    model: Any,
    *,
    replicas: int = 0,
    seed: int = 0,
    processes: int = 1,
    advance: Callable[[int], None] | None = None,
) -> list[WeightSpectrum]:
    """Return the spectra of all attention matrices, layer by layer; a fused weight counts as its matrices.

    Args:
        replicas: of the bootstrap of every power law.
        advance: told of every matrix that is done.

    Raises: ValueError for a model whose parameters are not known.
    """
    generator = np.random.default_rng(seed)
    spectra = []
    for view in partition(model):
        if view.role not in ATTENTION_ROLES or view.layer is None or view.parameter.ndim < 2:
            continue
        matrix = view.of(view.parameter.detach()).double().cpu().numpy()
        shuffled = generator.permutation(matrix.ravel()).reshape(matrix.shape)
        both = [_eigenvalues(entries) for entries in (matrix, shuffled)]
        laws = [
            analyse_power_law(values[values > 0], discrete=False, replicas=replicas, seed=seed, processes=processes)
            for values in both
        ]
        spectra.append(WeightSpectrum(view.layer, str(view.role), both[0], *laws))
        if advance is not None:
            advance(1)
    return sorted(spectra, key=lambda spectrum: (spectrum.layer, ATTENTION_ROLES.index(spectrum.role)))


def _eigenvalues(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.linalg.svd(matrix, compute_uv=False) ** 2 / matrix.shape[1]
    # Eigenvalues that are zero to rounding are no part of any tail.
    return np.asarray(np.where(values > 1e-14 * values.max(initial=0.0), values, 0.0))
