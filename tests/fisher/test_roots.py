"""Damped inverses and their roots against torch.linalg in float64."""

import math

import pytest
import torch

from natattn.fisher.roots import damped_inverse, inverse_cholesky, inverse_square_root


def _factors(decades, dim=24, heads=3, dtype=torch.float64):
    """Positive definite matrices whose eigenvalues span some decades."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64))
    return ((basis * torch.logspace(0, -decades, dim, dtype=torch.float64)) @ basis.mT).to(dtype)


def _damped(matrices, damping):
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)
    damping = torch.as_tensor(damping, dtype=matrices.dtype) * mean
    return matrices + damping[..., None, None] * torch.eye(matrices.shape[-1], dtype=matrices.dtype)


@pytest.mark.parametrize("damping", [1e-3, 0.1, torch.tensor([0.01, 0.1, 1.0])], ids=["small", "large", "per head"])
def test_root_squares_to_the_inverse(damping):
    matrices = _factors(4)
    root, good = inverse_square_root(matrices, damping)
    assert good.all()
    expected = torch.linalg.inv(_damped(matrices, damping))
    torch.testing.assert_close(root @ root, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert torch.linalg.eigvalsh(root).min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("damping", [1e-6, 0.1, torch.tensor([0.01, 0.1, 1.0])], ids=["tiny", "large", "per head"])
def test_cholesky_gives_the_inverse_and_a_root_of_it(dtype, damping):
    matrices = _factors(4, dtype=dtype) * 1e-3
    expected = torch.linalg.inv(_damped(matrices.double(), damping))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    root, good = inverse_cholesky(matrices, damping)
    inverse, also_good = damped_inverse(matrices, damping)
    assert good.all()
    assert also_good.all()
    assert root.dtype == inverse.dtype == dtype
    assert root.triu(1).abs().max() == 0
    for found in (inverse, root.mT @ root):
        error = torch.linalg.matrix_norm(found.double() - expected) / torch.linalg.matrix_norm(expected)
        assert error.max() < tolerance


@pytest.mark.parametrize("decompose", [inverse_cholesky, damped_inverse])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_cholesky_says_which_matrices_are_bad(decompose, bad):
    matrices = _factors(2)
    expected, _ = decompose(matrices, 0.1)
    matrices[1] = bad
    found, good = decompose(matrices, 0.1)
    assert good.tolist() == [True, False, True]
    torch.testing.assert_close(found[good], expected[good])


def test_damping_is_in_units_of_the_mean_eigenvalue():
    matrices = _factors(3)
    root, _ = inverse_square_root(matrices, 0.05)
    scaled, _ = inverse_square_root(matrices * 1e-12, 0.05)
    torch.testing.assert_close(scaled * 1e-6, root)


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_bad_matrices_are_told_and_do_not_spoil_the_others(entry):
    matrices = _factors(2, heads=4)
    expected, _ = inverse_square_root(matrices, 0.1)
    matrices[1, 2, 3] = entry
    matrices[3] = 0.0  # no positive trace: nothing to be relative to
    root, good = inverse_square_root(matrices, 0.1)
    assert good.tolist() == [True, False, True, False]
    torch.testing.assert_close(root[[0, 2]], expected[[0, 2]])


def test_rounding_below_zero_does_not_pass_the_damping():
    """A factor that rounding made indefinite has no eigenvalue of the root above the damping's own."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, -1e-3], dtype=torch.float64))[None]
    root, good = inverse_square_root(matrix, 1e-3)
    assert good.all()
    mean = float(matrix.diagonal(dim1=-2, dim2=-1).mean())
    assert torch.linalg.eigvalsh(root).max() <= (1e-3 * mean) ** -0.5 * (1 + 1e-9)


def test_failed_decomposition_is_told(monkeypatch):
    def fails(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    _, good = inverse_square_root(_factors(2), 0.1)
    assert not good.any()
