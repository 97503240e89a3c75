"""The contract of every optimizer in ``conf/optim``; a new file joins by itself."""

import copy

import pytest
import torch
from trained import Trained, build_model, loss_of, settings_of

from natattn.models.implicit_masks import one_sequence_per_row
from natattn.optim.matrix import ROLES
from natattn.optim.settings import OptimSettings, read_settings


def test_descends_on_a_tiny_transformer(optimizer_name):
    losses = Trained(optimizer_name).train(range(40))
    assert losses[-1] < 0.7 * losses[0]


def test_its_file_alone_equals_what_the_command_line_composes(optimizer_name):
    assert read_settings(optimizer_name) == settings_of(optimizer_name)


def test_reports_metrics_of_its_last_step(optimizer_name):
    trained = Trained(optimizer_name)
    trained.train(range(2))
    trained.backward(2)
    embeddings = [trained.model.transformer.wte.weight, trained.model.transformer.wpe.weight]
    (group,) = [g for g in trained.optimizer.param_groups if any(p is embeddings[0] for p in g["params"])]
    decay = 1 - group["lr"] * group["weight_decay"]
    decayed = [decay * parameter.detach() for parameter in embeddings]
    trained.optimizer.measure_next_step()
    trained.optimizer.step()
    metrics = trained.optimizer.metrics()
    changes = [(new.detach() - old).flatten() for new, old in zip(embeddings, decayed, strict=True)]
    assert metrics["embedding/update_rms"] == pytest.approx(float(torch.cat(changes).square().mean().sqrt()), rel=1e-4)
    assert {f"{role}/update_to_weight" for role in ("query", "key", "value", "output", "mlp")} <= set(metrics)
    trained.train(range(3, 5))
    assert "embedding/update_rms" not in trained.optimizer.metrics()  # that step was not measured
    conditions = {name: value for name, value in metrics.items() if name.endswith("condition")}
    for name in conditions:
        role = name.partition("/")[0]
        assert 0.999 < metrics[f"{role}/preconditioned_condition"] < 1.01 * metrics[f"{role}/condition"]


def test_descends_on_a_convex_quadratic(optimizer_name):
    trained = Trained(optimizer_name, "optim.weight_decay=0")
    generator = torch.Generator().manual_seed(1)
    targets = [p.detach() + 0.2 * torch.randn(p.shape, generator=generator) for p in trained.model.parameters()]
    losses = []
    for step in range(30):
        with trained.observed(step):
            loss_of(trained.model, step)  # what the factors and energies are of; its gradient plays no part
        pairs = list(zip(trained.model.parameters(), targets, strict=True))
        for parameter, target in pairs:
            parameter.grad = parameter.detach() - target
        losses.append(sum(float(parameter.grad.square().sum()) for parameter, _ in pairs) / 2)
        trained.optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert losses[10] < losses[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_is_deterministic_and_works_on_fused_and_grouped_weights(optimizer_name, kind):
    first, second = (Trained(optimizer_name, kind=kind) for _ in range(2))
    assert first.train(range(6)) == second.train(range(6))
    assert first.optimizer.metrics().get("failed_decompositions", 0) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_exactly_from_its_state_dict(optimizer_name, dtype):
    first = Trained(optimizer_name, dtype=dtype)
    first.train(range(7))
    second = Trained(optimizer_name, model=copy.deepcopy(first.model))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    if first.probe is not None:
        second.probe.load_state_dict(copy.deepcopy(first.probe.state_dict()))
    assert first.train(range(7, 14)) == second.train(range(7, 14))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.slow
def test_a_compiled_model_is_one_graph_and_trains_the_same(optimizer_name):
    eager, compiled = (Trained(optimizer_name) for _ in range(2))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    body = compiled.model.transformer  # without transformers' loss, whose warning breaks any graph
    body.forward = torch.compile(body.forward, backend=backend)
    with one_sequence_per_row():
        assert compiled.train(range(7)) == pytest.approx(eager.train(range(7)), rel=1e-5)
    for graph in graphs:
        assert sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes) == 2


def test_every_parameter_moves_and_gradients_are_left_as_they_were(optimizer_name):
    trained = Trained(optimizer_name)
    trained.train(range(1))  # SOAP's first step only starts its factors
    trained.backward(1)
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in trained.model.named_parameters()}
    trained.optimizer.step()
    for name, parameter in trained.model.named_parameters():
        if before[name][1].any():
            assert not torch.equal(parameter, before[name][0]), name
        assert torch.equal(parameter.grad, before[name][1]), name


def test_parameters_without_a_gradient_and_frozen_ones_stay(optimizer_name):
    model = build_model()
    model.transformer.h[1].requires_grad_(False)
    trained = Trained(optimizer_name, model=model)
    frozen = copy.deepcopy(model.transformer.h[1].state_dict())
    trained.backward(0)
    weight = model.transformer.h[0].attn.c_attn.weight
    weight.grad = None
    before = weight.detach().clone()
    trained.optimizer.step()
    assert torch.equal(weight, before)
    assert all(torch.equal(value, frozen[name]) for name, value in model.transformer.h[1].state_dict().items())


def test_tied_embeddings_are_one_parameter_in_one_group(optimizer_name):
    trained = Trained(optimizer_name)
    grouped = [id(p) for group in trained.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trained.model.parameters())


def test_weight_decay_is_for_matrices_only(optimizer_name):
    for group in Trained(optimizer_name, "optim.weight_decay=0.1").optimizer.param_groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)


def test_closure_and_schedulers_work_as_in_pytorch(optimizer_name):
    trained = Trained(optimizer_name)
    scheduler = torch.optim.lr_scheduler.LambdaLR(trained.optimizer, lambda step: 0.0)

    def closure():
        trained.optimizer.zero_grad(set_to_none=True)
        return trained.backward(0)

    before = [p.clone() for p in trained.model.parameters()]
    assert float(trained.optimizer.step(closure)) > 0
    scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(before, trained.model.parameters(), strict=True)), "the rate was zero"


def test_added_parameters_are_trained(optimizer_name):
    trained = Trained(optimizer_name)
    head = torch.nn.Linear(4, 3)
    trained.optimizer.add_param_group({"params": head.parameters()})
    for _ in range(2):
        head(torch.ones(2, 4)).square().sum().backward()
        before = head.weight.detach().clone()
        trained.optimizer.step() if trained.probe is None else trained.train(range(1))
    assert not torch.equal(head.weight, before)
    with pytest.raises(ValueError, match="role=nothing"):
        trained.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "role": "nothing"})
    assert len(trained.optimizer.state_dict()["param_groups"]) == len(trained.optimizer.param_groups)


def test_scale_of_the_gradient(optimizer_name):
    """Only SGD depends on it; Muon and its relatives do not if it is a power of two."""
    results = []
    for scale in (1.0, 4.0):
        trained = Trained(optimizer_name, dtype=torch.float64)
        for step in range(4):
            with trained.observed(step):
                (loss_of(trained.model, step) * scale).backward()
            trained.optimizer.step()
            trained.optimizer.zero_grad()
        results.append(torch.cat([p.detach().flatten() for p in trained.model.parameters()]))
    # torch.optim.Muon rounds to bfloat16, which makes much of the little that Adam's eps changes.
    scales = not torch.allclose(results[0], results[1], atol=1e-3, rtol=0)
    assert scales == (optimizer_name == "sgd")


def test_state_memory_is_as_documented(optimizer_name):
    """Count the state tensors per element of a hidden matrix, apart from those that a direction keeps per factor."""
    per_element = {"momentum": 1, "orthogonal": 1, "whitened": 1}
    per_factor = ("root", "inverse", "basis", "left", "right", "levels")
    trained = Trained(optimizer_name)
    trained.train(range(2))
    for key, direction in trained.settings.directions.items():
        kind = getattr(direction, "inner", direction).kind
        expected = per_element.get(kind, 2)
        for matrix in trained.optimizer.matrices:
            if matrix.direction != key or matrix.parameter.ndim < 2:
                continue
            shape = matrix.of(matrix.parameter).shape
            others = {name: value for name, value in matrix.state.items() if not name.endswith(per_factor)}
            assert sum(value.shape == shape for value in others.values()) == expected
            assert all(value.shape == shape or value.numel() == 1 for value in others.values()), others.keys()


def test_a_gradient_that_is_not_finite_is_not_hidden_and_factors_stay_good(optimizer_name):
    """The training loop stops an arm whose loss is not finite; decompositions must not raise."""
    trained = Trained(optimizer_name)
    trained.train(range(3))
    trained.backward(3)
    for parameter in trained.model.parameters():
        parameter.grad.fill_(torch.nan)
    trained.optimizer.step()
    for matrix in trained.optimizer.matrices:
        for name, value in matrix.state.items():
            if "root" in name or "basis" in name:
                assert bool(value.isfinite().all()), name


def test_settings_survive_json(optimizer_name):
    settings = settings_of(optimizer_name)
    assert OptimSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("placebo", ["constant", "shuffled", "identity", "plain"])
def test_placebos_train_and_resume_or_are_refused(optimizer_name, placebo):
    from natattn.errors import UserError

    settings = settings_of(optimizer_name)
    reads_factors = any(name != "covariance" for role in ROLES for name in settings.direction_of(role).factors(role))
    if not settings.reads_attention or (placebo == "plain" and not reads_factors):
        with pytest.raises(UserError, match="placebo"):
            settings_of(optimizer_name, f"optim.placebo={placebo}")
        return
    first = Trained(optimizer_name, f"optim.placebo={placebo}")
    assert first.train(range(7))[-1] > 0
    second = Trained(optimizer_name, f"optim.placebo={placebo}", model=copy.deepcopy(first.model))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.probe.load_state_dict(copy.deepcopy(first.probe.state_dict()))
    assert first.train(range(7, 12)) == second.train(range(7, 12))
