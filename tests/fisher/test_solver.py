"""Factors with their roots: cadence, solves, and what happens to factors that are not finite."""

import math

import pytest
import torch

from natattn.fisher.solver import KroneckerFactors

HEADS, HEAD_DIM, WIDTH = 3, 4, 6


def _factor(seed, dim, heads=HEADS):
    half = torch.randn(heads, dim, 2 * dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return half @ half.mT


def _layer(seed):
    return {
        "query_input": _factor(seed, WIDTH, heads=1),
        "query_output": _factor(seed + 1, HEAD_DIM),
        "key_input": _factor(seed + 2, WIDTH),
        "key_output": _factor(seed + 3, HEAD_DIM),
        "value_input": _factor(seed + 4, WIDTH),
    }


def _inverse(matrix, damping):
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return torch.linalg.inv(matrix + damping * mean * torch.eye(matrix.shape[-1], dtype=matrix.dtype))


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_averages_are_exponential_and_bias_corrected(decay):
    running = KroneckerFactors(decay=decay, damping=0.1, refresh_every=100)
    layers = [_layer(10 * step) for step in range(4)]
    for layer in layers:
        running.update(layer)
    weights = [decay ** (3 - step) for step in range(4)]
    for name in layers[0]:
        expected = sum(w * layer[name] for w, layer in zip(weights, layers, strict=True)) / sum(weights)
        torch.testing.assert_close(running.average(name), expected)


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_solve_and_whiten_apply_both_sides(method):
    damping = 0.05
    running = KroneckerFactors(decay=0.9, damping=damping, refresh_every=1, method=method)
    layer = _layer(0)
    running.update(layer)
    matrix = torch.randn(HEADS, HEAD_DIM, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for side in ("query", "key"):
        left, right = _inverse(layer[f"{side}_output"], damping), _inverse(layer[f"{side}_input"], damping)
        torch.testing.assert_close(running.solve(side, matrix), left @ matrix @ right)
        # The same as one solve with the Kronecker product, in the layout of the gradient's own flatten().
        product = torch.kron(left[1].contiguous(), right.expand(HEADS, -1, -1)[1].contiguous())
        torch.testing.assert_close(running.solve(side, matrix)[1].flatten(), product @ matrix[1].flatten())
        torch.testing.assert_close(running.inverse(f"{side}_output"), left)
        twice = running.whiten(side, running.whiten(side, matrix))
        torch.testing.assert_close(twice, left @ matrix @ right)
    torch.testing.assert_close(running.solve("value", matrix), matrix @ _inverse(layer["value_input"], damping))


def test_every_head_has_its_own_damping():
    damping = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    running = KroneckerFactors(decay=0.5, damping=damping, refresh_every=1)
    layer = _layer(0)
    running.update(layer)
    for head in range(HEADS):
        for name in ("query_input", "query_output"):
            factor = layer[name].expand(HEADS, -1, -1)[head]
            torch.testing.assert_close(running.inverse(name)[head], _inverse(factor, float(damping[head])))


def test_before_anything_is_given_the_matrix_stays():
    running = KroneckerFactors(decay=0.9, damping=0.1, refresh_every=1)
    matrix = torch.ones(HEADS, HEAD_DIM, WIDTH)
    assert torch.equal(running.solve("query", matrix), matrix)
    running.update({"query_output": _factor(0, HEAD_DIM)})
    solved = running.solve("query", matrix)
    assert solved.dtype == matrix.dtype
    torch.testing.assert_close(solved, (_inverse(_factor(0, HEAD_DIM), 0.1) @ matrix.double()).float())


def test_roots_are_refreshed_every_n_updates():
    running = KroneckerFactors(decay=0.5, damping=0.1, refresh_every=3)
    roots = []
    for step in range(7):
        running.update(_layer(10 * step))
        roots.append(running.inverse_root("key_input"))
    changed = [not torch.equal(roots[step], roots[step - 1]) for step in range(1, 7)]
    assert changed == [False, False, True, False, False, True]


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_factors_that_are_not_finite_are_left_out_and_counted(entry):
    running = KroneckerFactors(decay=0.9, damping=0.1, refresh_every=1)
    clean = KroneckerFactors(decay=0.9, damping=0.1, refresh_every=1)
    for step in range(3):
        layer = _layer(10 * step)
        spoiled = {name: factor.clone() for name, factor in layer.items()}
        if step == 1:
            spoiled["key_input"][2, 0, 0] = entry
        running.update(spoiled)
        clean.update(layer)
        if step == 1:
            # Head 2 still has the first average and its root, the other heads went on.
            torch.testing.assert_close(running.average("key_input")[2], _layer(0)["key_input"][2])
    torch.testing.assert_close(running.average("key_input")[:2], clean.average("key_input")[:2])
    torch.testing.assert_close(running.inverse_root("key_input")[:2], clean.inverse_root("key_input")[:2])
    weights = torch.tensor([0.9, 1.0], dtype=torch.float64)  # steps 0 and 2, as though step 1 had not been
    first, last = _layer(0)["key_input"][2], _layer(20)["key_input"][2]
    torch.testing.assert_close(running.average("key_input")[2], (weights[0] * first + last) / weights.sum())
    assert running.skipped["key_input"].tolist() == [0, 0, 1]
    assert all(not counts.any() for name, counts in running.skipped.items() if name != "key_input")
    assert all(not counts.any() for counts in running.failed.values())


def test_failed_refresh_keeps_the_last_good_root(monkeypatch):
    running = KroneckerFactors(decay=0.9, damping=0.1, refresh_every=1)
    running.update(_layer(0))
    before = running.inverse_root("query_output").clone()

    def fails(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    with monkeypatch.context() as patched:
        patched.setattr(torch.linalg, "eigh", fails)
        running.update(_layer(10))
    assert torch.equal(running.inverse_root("query_output"), before)
    assert running.failed["query_output"].tolist() == [1, 1, 1]
    running.update(_layer(20))
    assert not torch.equal(running.inverse_root("query_output"), before)


def test_first_factor_that_is_not_finite_leaves_the_identity():
    running = KroneckerFactors(decay=0.9, damping=0.1, refresh_every=1)
    running.update({"key_output": torch.full((HEADS, HEAD_DIM, HEAD_DIM), math.nan)})
    assert torch.equal(running.inverse_root("key_output"), torch.eye(HEAD_DIM).expand(HEADS, -1, -1))
    running.update({"key_output": _factor(0, HEAD_DIM).float()})
    torch.testing.assert_close(running.average("key_output"), _factor(0, HEAD_DIM).float())


def test_state_continues_where_it_was():
    arguments = {"decay": 0.9, "damping": 0.1, "refresh_every": 2}
    whole, first = KroneckerFactors(**arguments), KroneckerFactors(**arguments)
    for step in range(2):
        whole.update(_layer(10 * step))
        first.update(_layer(10 * step))
    second = KroneckerFactors(**arguments)
    second.load_state_dict(first.state_dict())
    for step in range(2, 5):
        whole.update(_layer(10 * step))
        second.update(_layer(10 * step))
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name
    assert first.state_dict()["key_input.skipped"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("key", "value"), [("decay", 1.0), ("decay", -0.1), ("damping", 0.0), ("refresh_every", 0)])
def test_arguments_out_of_range_are_named(key, value):
    arguments = {"decay": 0.9, "damping": 0.1, "refresh_every": 1, key: value}
    with pytest.raises(ValueError, match=key):
        KroneckerFactors(**arguments)
