"""Optimizers against reference implementations, the published factor, and mistakes in settings."""

import sys

import pytest
import torch
from learners import gpt2, loss_of

from natattn.optim.directions.adam import Adam
from natattn.optim.directions.energy_scaled import EnergyScaled, energy_factor
from natattn.optim.directions.orthogonal import Orthogonal
from natattn.optim.matrix import Matrix
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import partition
from natattn.optim.settings import OptimSettings
from natattn.training.settings import compose_run


def _settings(name: str, *overrides: str) -> OptimSettings:
    return compose_run([f"optim={name}", *overrides]).optim


def _matrix(direction, value: torch.Tensor, layer: int | None = None) -> Matrix:
    matrix = Matrix("weight", torch.nn.Parameter(value), "mlp", layer, state=direction.initial_state(value))
    matrix.value = value
    return matrix


def test_adamw_equals_torch():
    # In float64: the gradient of the key's bias is zero but for rounding, which Adam would blow up.
    model, twin = gpt2().double(), gpt2().double()
    settings = _settings("adamw", "optim.weight_decay=0.1", "~optim.learning_rates.hidden")
    optimizer = settings.build(model)
    decayed = [p for p in twin.parameters() if p.ndim > 1]
    others = [p for p in twin.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.95, 0.99), eps=1e-8)
    for step in range(5):
        for each, its in ((model, optimizer), (twin, reference)):
            its.zero_grad()
            loss_of(each, step).backward()
            its.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_fused_step_equals_the_written_direction():
    torch.manual_seed(0)
    direction = Adam(betas=(0.9, 0.99), eps=1e-8)
    values = [torch.randn(4, 3), torch.randn(5)]
    fast, plain = ([_matrix(direction, value.clone()) for value in values] for _ in range(2))
    rates = {"learning_rate": 0.1, "weight_decay": 0.2}
    for _ in range(4):
        for first, second in zip(fast, plain, strict=True):
            first.gradient = second.gradient = torch.randn_like(first.value)
        direction.step(fast, None, **rates)
        super(Adam, direction).step(plain, None, **rates)
    for first, second in zip(fast, plain, strict=True):
        torch.testing.assert_close(first.value, second.value, atol=1e-6, rtol=1e-6)


def test_muon_equals_torch_on_separate_query_key_and_value():
    model = gpt2()
    settings = _settings("muon", "optim.weight_decay=0.1")
    optimizer = settings.build(model)
    weight = model.transformer.h[0].attn.c_attn.weight
    parts = [torch.nn.Parameter(part.t().detach().clone()) for part in weight.split(16, dim=1)]
    reference = torch.optim.Muon(
        parts, lr=settings.learning_rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for part, gradient in zip(parts, weight.grad.split(16, dim=1), strict=True):
            part.grad = gradient.t().clone()
        optimizer.step()
        reference.step()
    for part, ours in zip(parts, weight.split(16, dim=1), strict=True):
        torch.testing.assert_close(ours, part.t(), atol=1e-6, rtol=1e-5)


def test_energy_factor_is_the_published_formula():
    energy = torch.tensor([0.0, 1.0, 5.0, 100.0])
    expected = torch.tensor([1.0, 1 + 0.099668, 1 + 0.462117, 2.0])
    torch.testing.assert_close(energy_factor(energy, 0.1), expected, atol=1e-6, rtol=0)


class _Energies:
    """Statistics with given mean absolute energies."""

    def __init__(self, energies):
        self.energies = energies

    @property
    def layers(self):
        return list(self.energies)

    recorded_layers = layers

    def mean_absolute_energy(self, layer):
        return torch.tensor(self.energies[layer])


def test_aif_scales_each_block_by_its_own_factor():
    seen = []

    class Inner(Adam):
        def updates(self, matrices, attention):
            seen.extend(matrix.gradient for matrix in matrices)
            return list(seen)

    direction = EnergyScaled(energy_scale=0.5, inner=Inner(betas=(0.9, 0.99), eps=1e-8))
    gradients = [torch.ones(2), torch.ones(3), torch.ones(4)]
    matrices = []
    for layer, gradient in zip((0, None, 1), gradients, strict=True):
        matrices.append(_matrix(direction, torch.zeros_like(gradient), layer))
        matrices[-1].gradient = gradient
    direction.updates(matrices, _Energies({0: 1.0, 1: 3.0}))
    factors = [float(gradient[0]) for gradient in seen]
    assert factors == pytest.approx(
        [1 + float(torch.tanh(torch.tensor(0.5))), 1.0, 1 + float(torch.tanh(torch.tensor(1.5)))]
    )
    assert all(bool((gradient == 1).all()) for gradient in gradients)


def test_aif_with_constant_energies_is_adamw_almost_exactly():
    """AdamW is invariant to a constant scale of the gradient, but for eps."""
    # In float64: the gradient of the key's bias is zero but for rounding, which Adam would blow up.
    model, twin = gpt2().double(), gpt2().double()
    adam = Adam(betas=(0.9, 0.999), eps=1e-16)
    scaled = DirectionalOptimizer(
        partition(model), {"default": EnergyScaled(energy_scale=1.0, inner=adam)}, learning_rate=1e-3, weight_decay=0.0,
        statistics=_Energies({0: 0.3, 1: 2.0}),
    )  # fmt: skip
    plain = DirectionalOptimizer(partition(twin), {"default": adam}, learning_rate=1e-3, weight_decay=0.0)
    for step in range(3):
        for each, its in ((model, scaled), (twin, plain)):
            its.zero_grad()
            loss_of(each, step).backward()
            its.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_aif_without_statistics_asks_for_a_probe():
    model = gpt2()
    optimizer = _settings("aif").build(model)
    loss_of(model, 0).backward()
    with pytest.raises(ValueError, match="probe"):
        optimizer.step()


def test_a_refused_group_leaves_the_optimizer_unchanged():
    optimizer = _settings("muon").build(gpt2())
    matrix, vector = torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(4))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 3))]})  # a group of as many entries
    groups = list(optimizer.param_groups)
    for parameters, role in (([matrix], "nothing"), ([matrix, vector], "mlp")):
        with pytest.raises(ValueError, match=r"role=nothing|for matrices"):
            optimizer.add_param_group({"params": parameters, "role": role})
        assert all(own is before for own, before in zip(optimizer.param_groups, groups, strict=True))
    optimizer.add_param_group({"params": [matrix, vector], "role": "vector"})
    assert [shown.direction for shown in optimizer.matrices_of(matrix)] == ["default"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": {"heads": {"kind": "adam", "betas": (0.9, 0.99), "eps": 1e-8}}}, "unknown role 'heads'"),
        ({"directions": {"hidden": {"kind": "adam", "betas": (0.9, 0.99), "eps": 1e-8}}}, "no direction for role 'emb"),
        ({"learning_rates": {"attention": 1e-3}}, "unknown role 'attention'"),
    ],
)
def test_unknown_or_missing_roles_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimSettings.model_validate(_settings("adamw").model_dump() | changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("natural_muon", {"factors": None}, r"factors: the directions read .*\. Set how they are captured"),
        ("muon", {"placebo": "shuffled"}, "placebo=shuffled: the optimizer does not read attention. Use placebo=null"),
        ("newton_muon", {"placebo": "shuffled"}, "placebo=shuffled: the optimizer does not read attention"),
        ("aif", {"placebo": "plain"}, "placebo=plain: there are no factors to replace. Use constant"),
        ("aif", {"placebo_energy": 1.0}, "placebo_energy: only the constant placebo has one"),
        ("aif", {"placebo": "shuffled", "placebo_energy": 1.0}, "placebo_energy: only the constant placebo has one"),
    ],
)
def test_options_that_contradict_each_other_are_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        OptimSettings.model_validate(_settings(name).model_dump() | changes)


def test_options_that_fit_are_accepted():
    for name, changes in (
        ("natural_muon", {"placebo": "plain"}),
        ("aif", {"placebo": "constant", "placebo_energy": 1.0}),
        ("muon", {}),
    ):
        OptimSettings.model_validate(_settings(name).model_dump() | changes)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("match_rms", [True, False])
@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_orthogonalised_momentum_is_that_of_torch(nesterov, match_rms, shape):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    values = _settings("muon").directions["hidden"].model_dump() | {"nesterov": nesterov, "match_rms": match_rms}
    direction = Orthogonal.model_validate(values)
    reference = torch.optim.Muon(
        [theirs], lr=1.0, weight_decay=0.0, momentum=values["momentum"], nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw" if match_rms else "original",
    )  # fmt: skip
    matrix = _matrix(direction, ours)
    for _ in range(3):
        theirs.grad = matrix.gradient = torch.randn(shape)
        (update,) = direction.updates([matrix], None)
        ours.data -= update
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["aif", "natural_muon"])
def test_a_step_of_one_process_calls_nothing_of_sharding(name):
    model = gpt2()
    settings = _settings(name)
    probe = settings.build_probe(model, row_count=4)
    optimizer = settings.build(model, probe)
    calls = []

    def record(frame, event, _):
        if event == "call" and "natattn" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_filename)

    for step in range(2):
        with probe.step(step):
            loss_of(model, step).backward()
        sys.setprofile(record if step else None)
        optimizer.step()
        sys.setprofile(None)
    assert not [file for file in calls if "sharded" in file or "distributed" in file]
    assert len(calls) < 300  # most parameters cost no call at all
