"""Patterns of models, and their statistics on patterns that are known."""

import math

import pytest
import torch
from small_models import MODELS, gpt2

from natattn.analysis.patterns import attention_patterns, pattern_divergence, pattern_statistics
from natattn.attention.patterns import jensen_shannon

LENGTH = 10


@pytest.fixture
def tokens():
    return torch.randint(20, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_the_model(name, tokens):
    model = MODELS[name]().eval()
    found = attention_patterns(model, tokens, batch_size=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids=tokens, output_attentions=True).attentions
    assert list(found) == list(range(len(expected)))
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was(tokens):
    model = gpt2()
    implementation = model.config._attn_implementation
    attention_patterns(model, tokens)
    assert model.training
    assert model.config._attn_implementation == implementation


def test_rank_and_sparsity_of_known_patterns():
    uniform = torch.full((LENGTH, LENGTH), 1 / LENGTH)
    identity = torch.eye(LENGTH)
    halves = torch.zeros(LENGTH, LENGTH)
    halves[:, :2] = 0.5
    found = pattern_statistics({3: torch.stack([uniform, identity, halves])[None].repeat(2, 1, 1, 1)})
    assert found.layers == [3]
    assert found.effective_rank[0].tolist() == pytest.approx([1.0, LENGTH, 1.0], rel=1e-5)
    assert found.keys_for_90_percent[0, :, 4].tolist() == [9.0, 1.0, 2.0]
    assert found.deviation.abs().max() == 0
    torch.testing.assert_close(found.mean[0, 1], identity.double())


def test_jensen_shannon_of_known_rows():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = torch.tensor([0.5, 0.5])
    assert float(jensen_shannon(one, other)) == pytest.approx(math.log(2))
    assert float(jensen_shannon(half, half)) == 0.0
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(2) / 2
    assert float(jensen_shannon(one, half)) == pytest.approx(expected)


def test_divergence_is_of_corresponding_rows(tokens):
    model = gpt2()
    first = attention_patterns(model, tokens)
    assert pattern_divergence(first, first).abs().max() < 1e-7
    with torch.no_grad():
        model.transformer.h[1].attn.c_attn.weight.mul_(2.0)
    second = attention_patterns(model, tokens)
    divergence = pattern_divergence(first, second)
    assert divergence.shape == (2, 2)
    assert divergence[0].abs().max() < 1e-7
    assert 0 < divergence[1].min() <= divergence[1].max() < math.log(2)
    with pytest.raises(ValueError, match="different layers"):
        pattern_divergence(first, {0: first[0]})
