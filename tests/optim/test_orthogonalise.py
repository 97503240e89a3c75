"""Newton–Schulz orthogonalisation against the singular value decomposition."""

import pytest
import torch

from natattn.optim.directions.orthogonal import orthogonalise

SHAPES = [(6, 6), (4, 9), (9, 4), (3, 5, 8), (2, 3, 8, 5)]


def _matrices(shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    matrices = _matrices(shape)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalise(matrices, 5) @ right.mT
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.diag_embed(diagonal), atol=1e-9, rtol=0)
    clear = values > 0.05 * torch.linalg.matrix_norm(matrices)[..., None]
    assert clear.any()
    assert diagonal[clear].min() > 0.6
    assert diagonal[clear].max() < 1.3


@pytest.mark.parametrize("dtype", ["own", "bfloat16"])
def test_a_batch_is_its_matrices_one_by_one_and_scale_does_not_matter(dtype):
    matrices = _matrices((3, 8, 5), torch.float32)
    batch = orthogonalise(matrices, 5, dtype)
    for matrix, expected in zip(matrices, batch, strict=True):
        for scale in (2.0**40, 2.0**100, 2.0**-100, 2.0**-130):  # the last are subnormal
            found = orthogonalise(matrix * scale, 5, dtype)
            torch.testing.assert_close(found, expected, atol=1e-6 if scale > 2.0**-120 else 1e-2, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bfloat16_products_give_nearly_the_same_in_the_dtype_of_the_matrices(shape, dtype):
    matrices = _matrices(shape, dtype)
    exact, rounded = orthogonalise(matrices, 5), orthogonalise(matrices, 5, "bfloat16")
    assert rounded.dtype == dtype
    error = torch.linalg.matrix_norm(rounded - exact) / torch.linalg.matrix_norm(exact)
    assert 0 < error.max() < 0.05


@pytest.mark.parametrize("dtype", ["own", "bfloat16"])
def test_zero_stays_zero(dtype):
    assert orthogonalise(torch.zeros(2, 4, 3), 5, dtype).abs().max() == 0
