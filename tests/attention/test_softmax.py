"""The damped natural gradient of softmax against a dense solve in float64, and attention written out over it."""

import math
from functools import partial

import pytest
import torch

from natattn.attention.energy import AttentionInputs
from natattn.attention.patterns import explicit_attention, masked_softmax
from natattn.attention.types.natural_gradient import natural_gradient_softmax, natural_score_gradient


def _random(rows: int, keys: int, scale: float) -> torch.Tensor:
    return torch.randn(rows, keys, generator=torch.Generator().manual_seed(keys), dtype=torch.float64) * scale


def _masked(scores: torch.Tensor) -> torch.Tensor:
    scores = scores.clone()
    scores[0, 2:] = -math.inf
    scores[1, :3] = -math.inf
    scores[2, 1] = -math.inf
    return scores


SCORES = {
    "flat": _random(4, 7, 0.01),
    "moderate": _random(4, 7, 1.0),
    "peaked": _random(4, 7, 8.0),
    "long": _random(4, 200, 2.0),
    "uniform": torch.zeros(4, 5, dtype=torch.float64),
    "masked": _masked(_random(4, 7, 1.0)),
    "masked and peaked": _masked(_random(4, 7, 8.0)),
    "two keys": _random(4, 2, 1.0),
}


def _dense_solve(pattern: torch.Tensor, pattern_gradient: torch.Tensor, damping: float) -> torch.Tensor:
    """(1+λ)(F+λI)⁻¹ F h, row by row, with whole matrices."""
    rows = []
    for a, h in zip(pattern, pattern_gradient, strict=True):
        fisher = torch.diag(a) - torch.outer(a, a)
        rows.append((1 + damping) * torch.linalg.solve(fisher + damping * torch.eye(len(a)).double(), fisher @ h))
    return torch.stack(rows)


@pytest.mark.parametrize("damping", [1e-6, 1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("case", SCORES)
def test_backward_is_the_dense_solve(case, damping):
    scores = SCORES[case].clone().requires_grad_()
    pattern = natural_gradient_softmax(scores, damping)
    gradient = _random(*scores.shape, 1.0)
    pattern.backward(gradient)
    expected = _dense_solve(pattern.detach(), gradient, damping)
    torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-8)
    assert bool((scores.grad[scores.isinf()] == 0).all())


@pytest.mark.parametrize("damping", [1e-6, 1e-3])
@pytest.mark.parametrize("case", SCORES)
def test_float32_keeps_its_digits_at_small_damping(case, damping):
    pattern = masked_softmax(SCORES[case])
    gradient = _random(*pattern.shape, 1.0)
    actual = natural_score_gradient(pattern.float(), gradient.float(), damping)
    torch.testing.assert_close(actual.double(), _dense_solve(pattern, gradient, damping), rtol=1e-5, atol=3e-6)


def test_stable_denominator():
    """s = 1 − Σ a²/(a+λ) = λ Σ a/(a+λ), the identity that the closed form rests on."""
    pattern = masked_softmax(SCORES["moderate"])
    for damping in (1e-3, 1.0):
        plain = 1 - (pattern**2 / (pattern + damping)).sum(-1)
        torch.testing.assert_close(plain, damping * (pattern / (pattern + damping)).sum(-1))


def test_large_damping_is_the_plain_gradient_and_small_the_centred_one():
    scores = SCORES["moderate"].clone().requires_grad_()
    gradient = _random(*scores.shape, 1.0)
    (plain,) = torch.autograd.grad(torch.softmax(scores, -1), scores, gradient)
    pattern = torch.softmax(scores, -1).detach()
    torch.testing.assert_close(natural_score_gradient(pattern, gradient, 1e9), plain, rtol=1e-7, atol=1e-9)
    centred = gradient - gradient.mean(-1, keepdim=True)
    torch.testing.assert_close(natural_score_gradient(pattern, gradient, 1e-12), centred, rtol=1e-7, atol=1e-9)


def test_values_on_masked_pairs_do_not_leak():
    scores = SCORES["masked"].clone().requires_grad_()
    pattern = natural_gradient_softmax(scores, 1e-6)
    gradient = _random(*scores.shape, 1.0)
    (first,) = torch.autograd.grad(pattern, scores, gradient, retain_graph=True)
    (second,) = torch.autograd.grad(pattern, scores, gradient.masked_fill(scores.isinf(), 1e6))
    assert torch.equal(first, second)


def test_a_row_without_keys_is_zero_and_a_nan_stays():
    scores = torch.tensor([[-math.inf, -math.inf], [0.0, math.nan], [0.0, 0.0]], requires_grad=True)
    pattern = natural_gradient_softmax(scores, 0.1)
    assert pattern[0].tolist() == [0, 0]
    assert bool(pattern[1].isnan().all())
    (gradient,) = torch.autograd.grad(pattern[[0, 2]].sum() + pattern[2, 0], scores)
    assert gradient[0].tolist() == [0, 0]
    assert bool(gradient[2].isfinite().all())


def _attention_inputs(**options) -> tuple[AttentionInputs, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 9, 4, generator=generator, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    )
    return AttentionInputs(query, key, scaling=0.7, **options), value


@pytest.mark.parametrize("mask", [None, "padded"])
def test_only_queries_and_keys_receive_another_gradient(mask):
    allowed = torch.ones(9, 9).tril().bool().repeat(2, 1, 1, 1)
    allowed[1, :, :, :2] = False  # the first rows of the second sequence have no key
    inputs, value = _attention_inputs(attention_mask=allowed if mask else None)
    sources = (inputs.query, inputs.key, value)
    target = torch.randn(2, 4, 9, 4, generator=torch.Generator().manual_seed(1)).double()
    plain = explicit_attention(inputs, value)
    natural = explicit_attention(inputs, value, softmax=partial(natural_gradient_softmax, damping=0.05))
    assert torch.equal(plain, natural)
    reference = torch.nn.functional.scaled_dot_product_attention(
        *sources, attn_mask=inputs.attention_mask, is_causal=mask is None, scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(plain, reference)
    expected = torch.autograd.grad(reference, sources, target)
    for actual, wanted in zip(torch.autograd.grad(plain, sources, target), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    changed = torch.autograd.grad(natural, sources, target)
    torch.testing.assert_close(changed[2], expected[2])

    # By hand: the gradient of the scores through a dense solve, then on to Q and K by the product rule.
    scores = inputs.energies(torch.arange(9)).masked_fill(~inputs.allowed(torch.arange(9)), -math.inf)
    pattern = masked_softmax(scores).detach()
    pattern_gradient = target @ value.detach().repeat_interleave(2, 1).transpose(-1, -2)
    solved = _dense_solve(pattern.flatten(0, 2), pattern_gradient.flatten(0, 2), 0.05).view(pattern.shape)
    query_gradient = 0.7 * solved @ inputs.key.detach().repeat_interleave(2, 1)
    key_gradient = 0.7 * (solved.transpose(-1, -2) @ inputs.query.detach()).view(2, 2, 2, 9, 4).sum(2)
    torch.testing.assert_close(changed[0], query_gradient)
    torch.testing.assert_close(changed[1], key_gradient)


def test_temperature_divides_scores_and_biases():
    bias = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(2)).double()
    T = torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
    inputs, value = _attention_inputs(position_bias=bias, softcap=2.0, temperature=T, is_causal=False)
    scores = 0.7 * inputs.query @ inputs.key.repeat_interleave(2, 1).transpose(-1, -2)
    scores = (2 * torch.tanh(scores / 2) + bias) / T[:, None, None]
    torch.testing.assert_close(explicit_attention(inputs, value), scores.softmax(-1) @ value.repeat_interleave(2, 1))
