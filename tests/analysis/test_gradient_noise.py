"""The noise of gradients whose mean and covariance are known, and of a small GPT-2's."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, GPT2Model

from natattn.analysis import gradient_noise
from natattn.analysis.gradient_noise import GradientMoments, gradient_moments, noise_scale
from natattn.analysis.sections import gradients as gradients_page
from natattn.analysis.sections.gradients import gradients_section
from natattn.analysis.subject import Subject
from natattn.errors import UserError
from natattn.optim.partition import partition

SIZES = {"vocab_size": 40, "n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}


def moments_of(gradients, blocks):
    """Of dense gradients [N, parameters]."""
    parts = np.array_split(gradients, blocks)
    sums = np.stack([part.sum(0) for part in parts])
    squares = np.array([(part**2).sum() for part in parts])
    return GradientMoments(sums @ sums.T, squares, np.array([float(len(part)) for part in parts]))


def test_sample_estimates_are_the_covariances_trace_and_the_unbiased_norm():
    gradients = np.random.default_rng(0).normal(1.0, 0.3, (21, 5))
    found = noise_scale(moments_of(gradients, 8))
    trace = np.trace(np.cov(gradients.T))
    norm = (gradients.mean(0) ** 2).sum() - trace / 21
    assert found.trace == pytest.approx(trace)
    assert found.squared_norm == pytest.approx(norm)
    assert found.scale == pytest.approx(trace / norm)
    assert noise_scale(moments_of(gradients, 1)).interval is None


def test_a_known_noise_scale_is_within_its_interval():
    mean, deviations = np.array([1.0, -0.5, 0.0, 0.25]), np.array([3.0, 1.0, 2.0, 5.0])
    true_trace, true_norm = (deviations**2).sum(), (mean**2).sum()
    generator = np.random.default_rng(3)
    norms, traces, inside = [], [], 0
    for _ in range(300):
        found = noise_scale(moments_of(mean + deviations * generator.normal(size=(600, 4)), 8))
        norms.append(found.squared_norm)
        traces.append(found.trace)
        low, high = found.interval or (0.0, np.inf)
        inside += low <= true_trace / true_norm <= high
    assert np.mean(norms) == pytest.approx(true_norm, rel=0.03)  # |mean|² alone would have 5 % too much
    assert np.mean(traces) == pytest.approx(true_trace, rel=0.01)
    assert 0.9 <= inside / 300 <= 0.99


def test_gradients_without_a_mean_are_not_resolved():
    gradients = np.random.default_rng(0).normal(size=(16, 50))
    gradients -= gradients.mean(0)  # so that the estimate is surely below 0
    found = noise_scale(moments_of(gradients, 8))
    assert found.squared_norm < 0
    assert (found.scale, found.interval) == (None, None)
    with pytest.raises(ValueError, match="two sequences"):
        noise_scale(moments_of(gradients[:1], 1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 40, (11, 12), generator=torch.Generator().manual_seed(1))


def dense(model, tokens):
    """Gradients of single sequences by role, [N, parameters], with transformers' own loss."""
    model = copy.deepcopy(model).double().eval()
    found = {}
    for sequence in tokens:
        model.zero_grad()
        model(input_ids=sequence[None], labels=sequence[None]).loss.backward()
        rows = {}
        for view in partition(model):
            for name in (view.role, "all"):
                rows.setdefault(name, []).append(view.of(view.parameter.grad).reshape(-1).numpy().copy())
        for name, parts in rows.items():
            found.setdefault(name, []).append(np.concatenate(parts))
    return {name: np.stack(rows) for name, rows in found.items()}


@pytest.mark.parametrize("most_numbers", [2**30, 4000])
def test_moments_are_those_of_dense_gradients(model, tokens, monkeypatch, most_numbers):
    monkeypatch.setattr(gradient_noise, "MOST_NUMBERS", most_numbers)
    monkeypatch.setattr(gradient_noise, "_SLICE", 100)  # several slices, the last one shorter
    blocks = 8 if most_numbers > 4000 else 1
    done = []
    found = gradient_moments(model, tokens, advance=done.append)
    expected = dense(model, tokens)
    assert set(found) == set(expected)
    assert next(iter(found)) == "all"
    assert sum(done) == len(tokens)
    assert found["all"].counts.sum() == 11
    assert len(found["all"].counts) == blocks
    for name, gradients in expected.items():
        trace = np.trace(np.cov(gradients.T))
        norm = (gradients.mean(0) ** 2).sum() - trace / len(gradients)
        scale = noise_scale(found[name])
        assert scale.trace == pytest.approx(trace, rel=1e-4)
        assert scale.squared_norm == pytest.approx(norm, rel=1e-3, abs=1e-4 * trace)
    total = sum(found[name].squares for name in found if name != "all")
    assert total == pytest.approx(found["all"].squares)


def test_the_model_is_left_as_it_was(model, tokens):
    model = copy.deepcopy(model).train()
    model.transformer.h[0].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = gradient_moments(model, tokens)
    assert [module.training for module in model.transformer.h] == [False, True]
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["transformer.wpe.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # no dropout, and gradients whatever is around it
        second = gradient_moments(model, tokens)
        assert not torch.is_grad_enabled()
    assert (first["all"].gram == second["all"].gram).all()
    monkeypatched = copy.deepcopy(model)
    monkeypatched.forward = None  # what fails inside leaves the flags too
    with pytest.raises(TypeError):
        gradient_moments(monkeypatched, tokens)
    assert monkeypatched.training
    assert not monkeypatched.transformer.wpe.weight.requires_grad


def section_of(model, tokens, *, is_causal=True):
    subject = Subject("model", {}, model, tokens, [], None, None, is_causal, "")
    return gradients_section(subject, None, lambda count: None)


def test_the_section(model, tokens):
    section = section_of(model, tokens)
    (found,) = section.tables
    rows = {row[0]: row for row in found.rows}
    assert list(rows) == ["all", "embedding", "vector", "query", "key", "value", "output", "mlp"]
    expected = gradient_moments(model, tokens)
    for name, row in rows.items():
        scale = noise_scale(expected[name]).scale
        assert row[1] == scale
        assert (row[3] is None) == (scale is None)
        assert row[3] is None or row[3] == pytest.approx(11 * scale)  # 12 tokens have 11 predictions
        assert (row[-1] == "yes") == (scale is not None)
    assert section.pictures[0].png.startswith(b"\x89PNG")
    assert "sequences of the validation split" in section.findings[0]
    json.dumps(section.to_json(), allow_nan=False)


def test_the_section_says_what_is_not_resolved(model, tokens, monkeypatch):
    noise = GradientMoments(np.zeros((8, 8)), np.ones(8), np.ones(8))  # sums of 0: no mean at all
    monkeypatch.setattr(gradients_page, "gradient_moments", lambda *_, **__: {"all": noise, "mlp": noise})
    section = section_of(model, tokens)
    assert "not resolved with 11 sequences" in section.findings[0]
    assert section.findings[1] == "Not resolved by themselves: mlp."
    assert section.tables[0].rows[0][1] is None
    assert section.pictures == ()


def test_models_that_predict_no_next_token(tokens):
    encoder = BertModel(
        BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    for other, is_causal in ((encoder, False), (GPT2Model(GPT2Config(**SIZES)), True)):
        with pytest.raises(UserError, match="needs a causal language model"):
            section_of(other, tokens, is_causal=is_causal)
