"""Damped inverses and inverse square roots against torch.linalg in float64."""

import math

import pytest
import torch

from natattn.fisher.roots import damped_inverse, inverse_cholesky, inverse_square_root

DAMPINGS = {"tiny": 1e-6, "large": 0.1, "per head": torch.tensor([0.01, 0.1, 1.0])}
DECOMPOSITIONS = [inverse_square_root, inverse_cholesky, damped_inverse]


def _factors(decades, dim=24, heads=3, dtype=torch.float64):
    """Positive definite matrices whose eigenvalues span some decades."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64))
    return ((basis * torch.logspace(0, -decades, dim, dtype=torch.float64)) @ basis.mT).to(dtype)


def _inverse(matrices, damping):
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    damping = torch.as_tensor(damping, dtype=matrices.dtype) * mean
    return torch.linalg.inv(matrices + damping[..., None, None] * torch.eye(matrices.shape[-1], dtype=matrices.dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("damping", DAMPINGS.values(), ids=DAMPINGS)
@pytest.mark.parametrize("decompose", DECOMPOSITIONS)
def test_a_decomposition_gives_the_damped_inverse(decompose, dtype, damping):
    matrices = _factors(4, dtype=dtype) * 1e-3
    expected = _inverse(matrices.double(), damping)
    found, good = decompose(matrices, damping)
    assert good.all()
    assert found.dtype == dtype
    if decompose is inverse_cholesky:
        assert found.triu(1).abs().max() == 0
    if decompose is inverse_square_root:
        assert torch.linalg.eigvalsh(found.double()).min() > 0
    inverse = found if decompose is damped_inverse else found.mT @ found
    error = torch.linalg.matrix_norm(inverse.double() - expected) / torch.linalg.matrix_norm(expected)
    assert error.max() < (1e-9 if dtype == torch.float64 else 5e-5)


@pytest.mark.parametrize("decompose", DECOMPOSITIONS)
def test_damping_is_in_units_of_the_mean_eigenvalue(decompose):
    found, _ = decompose(_factors(3), 0.05)
    scaled, _ = decompose(_factors(3) * 2.0**-40, 0.05)
    torch.testing.assert_close(scaled * 2.0 ** (-40 if decompose is damped_inverse else -20), found)


@pytest.mark.parametrize("decompose", DECOMPOSITIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_bad_matrices_are_flagged_and_do_not_spoil_the_others(decompose, bad):
    matrices = _factors(2)
    expected, _ = decompose(matrices, 0.1)
    matrices[1] = bad  # of zeros: there is no positive trace to be relative to
    found, good = decompose(matrices, 0.1)
    assert good.tolist() == [True, False, True]
    torch.testing.assert_close(found[good], expected[good])


def test_rounding_below_zero_does_not_pass_the_damping():
    """A factor that rounding made indefinite has no eigenvalue of the root above the damping's own."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, -1e-3], dtype=torch.float64))[None]
    root, good = inverse_square_root(matrix, 1e-3)
    assert good.all()
    mean = float(matrix.diagonal(dim1=-2, dim2=-1).mean())
    assert torch.linalg.eigvalsh(root).max() <= (1e-3 * mean) ** -0.5 * (1 + 1e-9)


def test_a_failed_eigendecomposition_is_flagged(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    _, good = inverse_square_root(_factors(2), 0.1)
    assert not good.any()
