"""FisherMuon and NaturalMuon in a plain training loop."""

import copy

import pytest
import torch
from learners import TOKENS, gpt2, loss_of
from transformers import LlamaConfig, LlamaForCausalLM

from natattn import FisherMuon, NaturalMuon
from natattn.fisher.probe import FisherProbe
from natattn.optim.directions.whitened import Whitened
from natattn.optim.settings import read_settings


def _gpt2(**changes):
    return gpt2(initializer_range=0.2, **changes)


def _llama():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **TOKENS)).train()


def _train(model, optimizer, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("build", [_gpt2, _llama])
@pytest.mark.parametrize("kind", [FisherMuon, NaturalMuon])
def test_a_plain_loop_learns(kind, build):
    model = build()
    losses = _train(model, kind(model, lr=0.02), range(40))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", [FisherMuon, NaturalMuon])
def test_frozen_attention_is_left_alone(kind):
    model = _gpt2()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("attn" not in name)
    before = model.transformer.h[0].attn.c_attn.weight.clone()
    losses = _train(model, kind(model, lr=0.02), range(30))
    assert losses[-1] < losses[0]
    assert torch.equal(before, model.transformer.h[0].attn.c_attn.weight)


def test_a_copy_is_refused():
    with pytest.raises(TypeError, match="load_state_dict"):
        copy.deepcopy(FisherMuon(_gpt2()))


@pytest.mark.parametrize("kind", [FisherMuon, NaturalMuon])
def test_its_own_probe_and_a_given_one_give_the_same_losses(kind):
    mine, given = _gpt2(), _gpt2()
    expected = _train(mine, kind(mine), range(12))
    probe = read_settings(kind.entry).build_probe(given)
    optimizer = kind(given, probe=probe)
    losses = []
    for step in range(12):
        with probe.step(step):
            optimizer.zero_grad()
            loss = loss_of(given, step)
            loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses == expected


def test_evaluation_between_steps_changes_nothing():
    plain, evaluated = _gpt2(), _gpt2()
    expected = _train(plain, NaturalMuon(plain), range(8))
    optimizer, losses = NaturalMuon(evaluated), []
    for step in range(8):
        evaluated.eval()
        with torch.no_grad():
            loss_of(evaluated, 1000 + step)
        evaluated.train()
        losses += _train(evaluated, optimizer, [step])
    assert losses == expected


@pytest.mark.parametrize("interrupted_at", [3, 7])
def test_resumes_exactly(interrupted_at):
    model = _gpt2()
    expected = _train(model, FisherMuon(model), range(14))
    first = _gpt2()
    optimizer = FisherMuon(first)
    losses = _train(first, optimizer, range(interrupted_at))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second = _gpt2()
    again = FisherMuon(second)
    second.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert losses + _train(second, again, range(interrupted_at, 14)) == expected


def test_schedulers_and_closures_work():
    model = _gpt2()
    optimizer = FisherMuon(model, lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    losses = []
    for _ in range(6):
        losses.append(float(optimizer.step(closure)))
        scheduler.step()
    assert optimizer.probe.captures == 2  # steps 0 and 5
    assert losses[-1] < losses[0]


def test_rates_and_damping_are_used():
    slow, fast = _gpt2(), _gpt2()
    for model, lr in ((slow, 1e-9), (fast, 1e-2)):
        _train(model, NaturalMuon(model, lr=lr, default_lr=1e-9, weight_decay=0.0), [0])
    start = dict(_gpt2().named_parameters())
    moved = {name for name, p in fast.named_parameters() if (p - start[name]).abs().max() > 1e-5}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved} == {"c_attn", "c_proj", "c_fc"}
    assert all((p - start[name]).abs().max() < 1e-5 for name, p in slow.named_parameters())
    damped = {float(_train(model := _gpt2(), FisherMuon(model, damping=d), range(3))[-1]) for d in (0.01, 10.0)}
    assert len(damped) == 2


def test_detach_leaves_the_model_as_it_was():
    model = _gpt2(attn_implementation="eager")
    optimizer = FisherMuon(model)
    assert model.config._attn_implementation == "natural"
    _train(model, optimizer, range(2))
    optimizer.detach()
    assert model.config._attn_implementation == "eager"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_optimizer_that_cannot_be_made_leaves_the_model_as_it_was(monkeypatch):
    def refuse(direction, place):
        raise ValueError("cannot serve it")

    model = _gpt2(attn_implementation="eager")
    monkeypatch.setattr(Whitened, "check", refuse)
    with pytest.raises(ValueError, match="cannot serve it"):
        FisherMuon(model)
    assert model.config._attn_implementation == "eager"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_invalid_arguments_raise():
    model = _gpt2()
    with pytest.raises(ValueError, match="another GPT2LMHeadModel"):
        FisherMuon(model, probe=FisherProbe(_gpt2(), factors=("query_input",)))
    with FisherProbe(model, factors=("query_input",)) as probe, pytest.raises(ValueError, match="does not keep"):
        FisherMuon(model, probe=probe)
    with pytest.raises(ValueError, match="damping"):
        FisherMuon(model, damping=-1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        FisherMuon(model, lr=0.0)
    optimizer = FisherMuon(model.eval())
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="training mode"):
        optimizer.step()
