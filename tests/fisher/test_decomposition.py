"""Closed forms of the attention-Fisher against autograd, and against the Hessian of log Z."""

import pytest
import torch
from fisher_oracles import attention_fisher_by_autograd, factored_key_fisher, key_fisher, query_fisher

from natattn.fisher.decomposition import attention_fisher, score_fisher


def _relative_error(value, reference):
    return float((value - reference).norm() / reference.norm())


def test_query_fisher_is_exact(layer):
    closed = query_fisher(layer.inputs(), layer.input, layer.rotation)

    for head in range(closed.shape[0]):

        def scores(parameters, head=head):
            weight = layer.query_weight.clone()
            weight[head] = parameters["weight"]
            return layer.scores(query_weight=weight)

        exact = attention_fisher_by_autograd(scores, {"weight": layer.query_weight[head]}, layer.allowed_pairs())
        assert exact.norm() > 0
        assert _relative_error(closed[head], exact) < 1e-9


def test_key_fisher_is_exact(layer):
    closed = key_fisher(layer.inputs(), layer.input, layer.rotation)

    assert closed.shape[0] == layer.key_heads
    for head in range(layer.key_heads):

        def scores(parameters, head=head):
            weight = layer.key_weight.clone()
            weight[head] = parameters["weight"]
            return layer.scores(key_weight=weight)

        exact = attention_fisher_by_autograd(scores, {"weight": layer.key_weight[head]}, layer.allowed_pairs())
        assert exact.norm() > 0
        assert _relative_error(closed[head], exact) < 1e-9


@pytest.mark.parametrize("form", ["averaged", "plain"])
def test_factored_key_fisher_is_exact_without_rotary_embedding_only(layer, form):
    error = _relative_error(
        factored_key_fisher(layer.inputs(), layer.input, layer.rotation, form),
        key_fisher(layer.inputs(), layer.input, layer.rotation),
    )
    assert (error < 1e-12) if layer.rotary is None else (error > 0.05)


@pytest.mark.parametrize("side", ["query", "key"])
def test_fisher_is_the_hessian_of_log_partition(make_layer, side):
    """The scores are linear in each weight, so that F = ∇² Σ_i log Z_i: no Jacobian and no softmax in this one."""
    layer = make_layer(key_heads=2)

    def log_partition(weight):
        scores = layer.scores(**{f"{side}_weight": weight})
        return scores.masked_fill(~layer.allowed_pairs(), -1e30).logsumexp(-1).sum()

    weight = getattr(layer, f"{side}_weight")
    size = weight[0].numel()
    hessian = torch.func.hessian(log_partition)(weight).reshape(weight.numel(), weight.numel())
    fisher = (query_fisher if side == "query" else key_fisher)(layer.inputs(), layer.input)
    for head in range(weight.shape[0]):
        block = slice(head * size, (head + 1) * size)
        assert _relative_error(fisher[head], hessian[block, block]) < 1e-9


def test_score_fisher_is_the_hessian_of_log_sum_exp():
    scores = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = torch.func.hessian(lambda z: z.logsumexp(-1))(scores)
    block = score_fisher(scores.softmax(-1))
    torch.testing.assert_close(block, hessian)
    assert block.sum(-1).abs().max() < 1e-15


def test_attention_fisher_contracts_the_blocks():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    pattern = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).softmax(-1)
    expected = sum(jacobian[b, i].T @ score_fisher(pattern[b, i]) @ jacobian[b, i] for b in range(2) for i in range(3))
    torch.testing.assert_close(attention_fisher(jacobian, pattern), expected)


def test_bias_of_the_keys_has_no_fisher(make_layer):
    """The softmax does not see what all keys of a row have in common."""
    layer = make_layer(bias=True)
    fisher = key_fisher(layer.inputs(), layer.input).unflatten(-1, (4, -1)).unflatten(1, (4, -1))
    assert fisher[:, :, -1].abs().max() < 1e-12
    assert query_fisher(layer.inputs(), layer.input).unflatten(-1, (4, -1))[..., -1].abs().max() > 0.01
