"""Running averages of factors, what happens to factors that are not finite, and a probe that cannot keep any."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.distributed.ranks import Ranks
from natattn.fisher.probe import FisherProbe
from natattn.fisher.running import RunningAverage, RunningAverages

HEADS, WIDTH = 3, 6


def _factor(seed):
    half = torch.randn(HEADS, WIDTH, 2 * WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return half @ half.mT


def _running(factors, decay):
    running = RunningAverage.start(factors[0])
    for factor in factors:
        running.enter(factor, decay)
    return running


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_averages_are_exponential_and_bias_corrected(decay):
    factors = [_factor(seed) for seed in range(4)]
    weights = [decay ** (3 - step) for step in range(4)]
    expected = sum(w * factor for w, factor in zip(weights, factors, strict=True)) / sum(weights)
    torch.testing.assert_close(_running(factors, decay).average(), expected)


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_factors_that_are_not_finite_are_left_out_and_counted(entry):
    factors = [_factor(seed) for seed in range(3)]
    spoiled = [factor.clone() for factor in factors]
    spoiled[1][2, 0, 0] = entry
    running = _running(spoiled, 0.9)
    torch.testing.assert_close(running.average()[:2], _running(factors, 0.9).average()[:2])
    # Head 2 goes on from step 0 to step 2, as though step 1 had not been.
    torch.testing.assert_close(running.average()[2], _running(factors[::2], 0.9).average()[2])
    assert running.skipped.tolist() == [0, 0, 1]


def test_before_a_finite_factor_the_average_is_the_identity():
    running = _running([torch.full((HEADS, WIDTH, WIDTH), math.nan)], 0.9)
    assert torch.equal(running.average(), torch.eye(WIDTH).expand(HEADS, -1, -1))
    running.enter(_factor(0).float(), 0.9)
    torch.testing.assert_close(running.average(), _factor(0).float())


def test_ranks_average_what_they_captured_by_their_rows():
    """Three ranks with two sequences each, of which three are captured: two, one, and none of the last rank's."""
    ranks = [RunningAverages(0.9, 3, Ranks(number, 3)) for number in range(3)]
    assert [each.own_sequences(2) for each in ranks] == [2, 1, 1]
    factors, rows = [_factor(seed) for seed in range(3)], [8, 4, 4]
    said = []

    def total(tensors):
        said.append(tensors)
        return [sum(parts) for parts in zip(*said, strict=True)]

    for each, factor, count in zip(ranks, factors, rows, strict=True):
        each.enter("factor", factor, count, 2)
        assert each.average("factor") is None  # the others have not been heard
        each.reduce(SimpleNamespace(sum=total))
    # The last to speak has heard all.
    torch.testing.assert_close(ranks[-1].average("factor"), (8 * factors[0] + 4 * factors[1]) / 12)


def _gpt2():
    return GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, vocab_size=30))


def test_a_probe_that_cannot_be_made_leaves_the_model_as_it_was():
    model = _gpt2()
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        FisherProbe(model, factors=("query_input",), covariances=("transformer.h.0.mlp.c_fc", "nowhere"))
    assert model.config._attn_implementation == before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"decay": 1.0}, ValueError, "decay=1.0"),
        ({"capture_every": 0}, ValueError, "capture_every=0"),
        ({"sequences": 0}, ValueError, "sequences=0"),
        ({"capture_rows": 0}, ValueError, "capture_rows=0"),
        ({"factors": ("queries",)}, KeyError, "unknown factor 'queries'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, error, said):
    with pytest.raises(error, match=said):
        FisherProbe(_gpt2(), **arguments)


def test_what_is_not_kept_cannot_be_asked_for():
    with FisherProbe(_gpt2(), factors=("query_input",)) as probe:
        assert probe.average(0, "query_input") is None
        for owner, name in ((0, "key_input"), ("transformer.h.0.mlp.c_fc", "covariance")):
            with pytest.raises(KeyError, match=f"keeps no {name} of {owner}"):
                probe.average(owner, name)
