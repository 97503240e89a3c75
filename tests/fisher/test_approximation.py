"""Quality measures on matrices whose answer is known, and the quadratic form on real attention."""

import math

import pytest
import torch
from fisher_oracles import (
    eigenspace_overlap,
    key_fisher,
    pattern_change,
    query_fisher,
)

from natattn.fisher.decomposition import cosine, relative_frobenius_error


def _diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def test_distances():
    exact = torch.stack([_diagonal(3.0, 4.0), _diagonal(1.0, 0.0)])
    torch.testing.assert_close(relative_frobenius_error(1.5 * exact, exact), torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(cosine(0.01 * exact, exact), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(cosine(_diagonal(4.0, 3.0), exact[0]), torch.tensor(24 / 25, dtype=torch.float64))


def test_eigenspace_overlap():
    exact = _diagonal(5.0, 4.0, 1.0, 0.5)
    assert float(eigenspace_overlap(_diagonal(4.0, 9.0, 0.1, 0.2), exact, 2)) == pytest.approx(1)
    assert float(eigenspace_overlap(_diagonal(9.0, 0.1, 4.0, 0.2), exact, 2)) == pytest.approx(0.5)
    assert float(eigenspace_overlap(_diagonal(0.1, 0.2, 4.0, 9.0), exact, 2)) == pytest.approx(0)
    angle = 0.3
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    turned = turn @ _diagonal(2.0, 1.0) @ turn.T
    assert float(eigenspace_overlap(turned, _diagonal(2.0, 1.0), 1)) == pytest.approx(math.cos(angle) ** 2)


@pytest.mark.parametrize("side", ["query", "key"])
def test_quadratic_form_predicts_the_change_of_the_patterns(layer, side):
    """The ratio of measured to predicted tends to 1, and its distance from 1 shrinks with the step."""
    fisher = (query_fisher if side == "query" else key_fisher)(layer.inputs(), layer.input, layer.rotation)
    weight = getattr(layer, f"{side}_weight")
    direction = torch.randn(weight[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = []
    for size in (1e-2, 1e-3, 1e-4):
        moved = weight.clone()
        moved[0] += size * direction
        after = layer.scores(**{f"{side}_weight": moved})
        predicted, measured = pattern_change(fisher[0], size * direction, layer.scores(), after, layer.allowed_pairs())
        assert predicted > 0
        distances.append(abs(measured / predicted - 1))
    assert distances[0] < 0.2
    assert distances[2] < 2e-3
    assert distances[2] < distances[1] / 8
