"""The oracle of a model's own Fisher, from its definition and from an independent package."""

import pytest
import torch
from fisher_oracles import model_fisher
from torch import nn

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
