"""The dense oracles of the attention-Fisher against autograd, Hessians, loops and an independent package."""

import math

import pytest
import torch
from fisher_oracles import (
    attention_fisher_by_autograd,
    eigenspace_overlap,
    factored_key_fisher,
    key_fisher,
    model_fisher,
    pattern_change,
    query_fisher,
)
from torch import nn

from natattn.fisher.decomposition import attention_fisher, cosine, relative_frobenius_error, score_fisher


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


ROWS, FEATURES, CLASSES = 6, 3, 4


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, CLASSES)).double()


def _problem():
    network = _network()
    features = torch.randn(ROWS, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return network, features, parameters, lambda values: torch.func.functional_call(network, values, features)


def test_model_fisher_is_the_expected_outer_product_of_gradients():
    network, features, parameters, logits = _problem()
    expected = 0
    for row in features:
        log_probability = network(row).log_softmax(-1)
        for c in range(CLASSES):
            gradients = torch.autograd.grad(log_probability[c], list(network.parameters()), retain_graph=True)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            expected = expected + log_probability[c].exp().detach() * torch.outer(flat, flat)
    torch.testing.assert_close(model_fisher(logits, parameters), expected, rtol=1e-10, atol=1e-12)


def test_model_fisher_casts_to_float64():
    _, _, parameters, logits = _problem()
    halved = {name: parameter.float() for name, parameter in parameters.items()}
    fisher = model_fisher(logits, halved)
    assert fisher.dtype == torch.float64
    torch.testing.assert_close(fisher, model_fisher(logits, parameters), rtol=1e-5, atol=1e-6)


def test_model_fisher_agrees_with_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    network, features, parameters, logits = _problem()
    labels = torch.zeros(ROWS, dtype=torch.int64)  # the generalised Gauss–Newton matrix does not depend on them
    operator = curvlinops.GGNLinearOperator(
        network,
        nn.CrossEntropyLoss(reduction="sum"),
        list(network.parameters()),
        [(features, labels)],
        check_deterministic=False,
    )
    identity = torch.eye(sum(parameter.numel() for parameter in parameters.values()), dtype=torch.float64)
    torch.testing.assert_close(model_fisher(logits, parameters), operator @ identity, rtol=1e-9, atol=1e-12)


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
