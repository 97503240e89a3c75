"""AttentionInformedOptimizer: equal to optim=aif, finds its energies by itself, clear errors if there are none."""

import copy
import gc
import weakref

import pytest
import torch
from learners import gpt2

from natattn.attention.probe import AttentionProbe
from natattn.optim.directions.energy_scaled import energy_factor
from natattn.published.attention import blocks_of
from natattn.published.model import build_published
from natattn.published.optimizer import AttentionInformedOptimizer
from natattn.training.settings import compose_run

LAYERS = 2


def paper_model(causal: bool = True):
    return build_published(
        n_layer=LAYERS, n_embd=16, n_head=2, context=16, initializer_range=0.02, vocab_size=30, end_token_id=0,
        causal=causal, seed=0,
    )  # fmt: skip


def backward(model, step: int) -> None:
    tokens = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(step))
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


def train(model, optimizer, steps: int, probe: AttentionProbe | None = None, first: int = 0) -> None:
    for step in range(first, first + steps):
        if probe is None:
            backward(model, step)
        else:
            with probe.step(step):
                backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def run_optimizer(model, probe):
    """optim=aif with the published constants, as `natattn train` builds it."""
    overrides = ("optim=aif", "optim.learning_rate=1e-3", "optim.directions.default.inner.betas=[0.9,0.999]")
    settings = compose_run([*overrides, "++optim.learning_rates.hidden=1e-3"]).optim
    return settings.build(model, probe)


def same(first, second) -> None:
    torch.testing.assert_close(list(first.parameters()), list(second.parameters()), rtol=0, atol=0)


FORMS = {
    "model": lambda model: model,
    "parameters": lambda model: model.parameters(),
    "named_parameters": lambda model: model.named_parameters(),
    "list": lambda model: list(model.parameters()),
}


@pytest.mark.parametrize("form", FORMS)
def test_equals_optim_aif_with_the_energies_it_finds(form):
    first, second = paper_model(), paper_model()
    train(first, AttentionInformedOptimizer(FORMS[form](first)), 4)
    probe = AttentionProbe(second, row_count=None)
    train(second, run_optimizer(second, probe), 4, probe)
    same(first, second)


@pytest.mark.parametrize("form", FORMS)
def test_equals_optim_aif_with_a_probe_on_any_model(form):
    first, second = gpt2(), gpt2()
    probes = [AttentionProbe(model, row_count=4) for model in (first, second)]
    train(first, AttentionInformedOptimizer(FORMS[form](first), probe=probes[0]), 4, probes[0])
    train(second, run_optimizer(second, probes[1]), 4, probes[1])
    same(first, second)


def test_scales_the_gradients_of_each_block_and_no_others():
    model, twin = paper_model(), paper_model()
    optimizer = AttentionInformedOptimizer(model, energy_scale=3.0)
    backward(model, 0)
    backward(twin, 0)
    optimizer.step()
    factors = []
    for block, other in zip(model.transformer.h, twin.transformer.h, strict=True):
        energies = other.attn.energies
        allowed = torch.ones(12, 12, dtype=torch.bool).tril()
        factors.append(energy_factor(energies[..., allowed].abs().mean(), 3.0))
        for parameter, plain in zip(block.parameters(), other.parameters(), strict=True):
            expected = 0.1 * plain.grad * factors[-1].detach()
            torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], expected)
    assert all(float(factor) > 1.01 for factor in factors)
    embedding = model.transformer.wte.weight
    torch.testing.assert_close(optimizer.state[embedding]["exp_avg"], 0.1 * twin.transformer.wte.weight.grad)


def test_masked_energies_saturate_the_factor_only_on_request():
    for causal, saturate, saturated in ((True, True, True), (True, False, False), (False, True, False)):
        model = paper_model(causal)
        optimizer = AttentionInformedOptimizer(model.parameters(), masked_energies_saturate=saturate)
        train(model, optimizer, 1)
        assert [float(factor) == 2.0 for factor in optimizer.energy_factors().values()] == [saturated] * LAYERS
    with pytest.raises(ValueError, match="masked_energies_saturate"):
        AttentionInformedOptimizer(model, probe=AttentionProbe(model), masked_energies_saturate=True)


def test_state_is_restored_to_the_bit():
    whole, parted = paper_model(), paper_model()
    train(whole, AttentionInformedOptimizer(whole.parameters()), 6)
    optimizer = AttentionInformedOptimizer(parted.parameters())
    train(parted, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = AttentionInformedOptimizer(parted.parameters(), lr=1.0)
    resumed.load_state_dict(state)
    train(parted, resumed, 3, first=3)
    same(whole, parted)


def test_is_an_optimizer_to_pytorch():
    model = paper_model()
    optimizer = AttentionInformedOptimizer(model.parameters(), lr=0.5)
    assert isinstance(optimizer, torch.optim.Optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, optimizer, 1)
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert float(optimizer.step(lambda: torch.tensor(3.0))) == 3.0


def test_copies_of_a_model_have_energies_of_their_own():
    model = paper_model()
    twin = copy.deepcopy(model)
    optimizer = AttentionInformedOptimizer(twin.parameters())
    backward(model, 0)
    with pytest.raises(RuntimeError, match="forward"):
        optimizer.energy_factors()
    train(twin, optimizer, 1)


def test_finding_the_blocks_keeps_no_model_alive():
    model = paper_model()
    assert blocks_of(model.parameters())
    block = weakref.ref(model.transformer.h[0])
    del model
    gc.collect()
    assert block() is None


def test_missing_energies_raise():
    with pytest.raises(ValueError, match=r"no attention energies to read.*probe="):
        AttentionInformedOptimizer(gpt2().parameters())
    with pytest.raises(ValueError, match="none of these parameters"):
        AttentionInformedOptimizer(gpt2().parameters(), probe=AttentionProbe(gpt2()))
    model = paper_model()
    optimizer = AttentionInformedOptimizer(model)
    model.transformer.wte.weight.grad = torch.ones_like(model.transformer.wte.weight)
    with pytest.raises(RuntimeError, match="run a forward pass first"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"betas": (0.9,)}, "betas="),
        ({"eps": -1e-8}, "eps="),
        ({"weight_decay": -0.1}, "weight_decay="),
        ({"energy_scale": float("inf")}, "energy_scale=inf"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionInformedOptimizer(paper_model(), **options)


def test_invalid_parameters_are_refused():
    model = paper_model()
    iterator = model.parameters()
    list(iterator)
    with pytest.raises(ValueError, match="no parameters"):
        AttentionInformedOptimizer(iterator)
    with pytest.raises(ValueError, match=r"holds a dict.*not supported"):
        AttentionInformedOptimizer([{"params": list(model.parameters())}])
