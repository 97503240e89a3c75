"""A FisherProbe: its running averages, its captures under compilation, and the rotary embedding that it finds."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GlmConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
)

from natattn.distributed.ranks import Ranks
from natattn.fisher import probe as fisher_probe
from natattn.fisher.probe import FisherProbe, RunningAverage, RunningAverages
from natattn.models.implicit_masks import one_sequence_per_row

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
def test_factors_that_are_not_finite_are_skipped_and_counted(entry):
    factors = [_factor(seed) for seed in range(3)]
    spoiled = [factor.clone() for factor in factors]
    spoiled[1][2, 0, 0] = entry
    running = _running(spoiled, 0.9)
    torch.testing.assert_close(running.average()[:2], _running(factors, 0.9).average()[:2])
    # Head 2 skips step 1.
    torch.testing.assert_close(running.average()[2], _running(factors[::2], 0.9).average()[2])
    assert running.skipped.tolist() == [0, 0, 1]


def test_before_a_finite_factor_the_average_is_the_identity():
    running = _running([torch.full((HEADS, WIDTH, WIDTH), math.nan)], 0.9)
    assert torch.equal(running.average(), torch.eye(WIDTH).expand(HEADS, -1, -1))
    running.enter(_factor(0).float(), 0.9)
    torch.testing.assert_close(running.average(), _factor(0).float())


def test_ranks_average_their_captures_weighted_by_rows():
    """Three ranks with two sequences each, of which three are captured: two, one, and none of the last rank's."""
    ranks = [RunningAverages(0.9, 3, Ranks(number, 3)) for number in range(3)]
    assert [averages.own_sequences(2) for averages in ranks] == [2, 1, 1]
    factors, rows = [_factor(seed) for seed in range(3)], [8, 4, 4]
    sent = []

    def total(tensors):
        sent.append(tensors)
        return [sum(parts) for parts in zip(*sent, strict=True)]

    for averages, factor, count in zip(ranks, factors, rows, strict=True):
        averages.enter("factor", factor, count, 2)
        assert averages.average("factor") is None  # not reduced yet
        averages.reduce(SimpleNamespace(sum=total))
    # The last rank has the captures of all.
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
    ("arguments", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, "decay=1.0"),
        ({"capture_every": 0}, ValueError, "capture_every=0"),
        ({"sequences": 0}, ValueError, "sequences=0"),
        ({"capture_rows": 0}, ValueError, "capture_rows=0"),
        ({"factors": ("queries",)}, KeyError, "unknown factor 'queries'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        FisherProbe(_gpt2(), **arguments)


def test_reading_a_factor_that_is_not_kept_raises():
    with FisherProbe(_gpt2(), factors=("query_input",)) as probe:
        assert probe.average(0, "query_input") is None
        for owner, name in ((0, "key_input"), ("transformer.h.0.mlp.c_fc", "covariance")):
            with pytest.raises(KeyError, match=f"keeps no {name} of {owner}"):
                probe.average(owner, name)


TOKENS = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_positions=12, n_embd=16, n_layer=2, n_head=2, **TOKENS)),
        ("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_proj"),
    ),
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=12, **TOKENS)
        ),
        ("model.layers.0.mlp.up_proj",),
    ),
}  # fmt: skip
FACTORS = ("query_input", "query_output", "key_input", "key_output")


@pytest.mark.parametrize("kind", MODELS)
def test_a_compiled_forward_pass_is_captured_like_an_eager_one_in_one_graph(kind):
    build, covariances = MODELS[kind]
    torch.manual_seed(0)
    models = [build().train()]
    models.append(copy.deepcopy(models[0]))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    probes = [
        FisherProbe(model, factors=FACTORS, covariances=covariances, capture_every=2, sequences=2, capture_rows=5)
        for model in models
    ]
    for model, probe in zip(models, probes, strict=True):
        forward = torch.compile(model, backend=backend) if model is models[1] else model
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            with one_sequence_per_row(), probe.step(step):
                for _ in range(2):  # gradient accumulation: the first pass of a step is captured
                    tokens = torch.randint(30, (3, 12), generator=generator)
                    forward(input_ids=tokens, use_cache=False).logits.square().mean().backward()
    for graph in graphs:
        assert sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes) == 2
    states = [probe.state_dict() for probe in probes]
    assert states[0].keys() == states[1].keys()
    assert probes[0].captures == probes[1].captures == 2
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_that_fails_leaves_nothing_behind():
    build, covariances = MODELS["gpt2"]
    model = build().train()
    probe = FisherProbe(model, factors=FACTORS, covariances=covariances, capture_every=1)
    compiled = torch.compile(model, backend="eager")
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(RuntimeError, match="labels"), probe.step(0):
        raise RuntimeError(f"labels of {compiled(input_ids=tokens, use_cache=False).logits.shape}")
    assert probe.average(0, "query_input") is None
    with probe.step(1):
        pass
    assert probe.average(0, "query_input") is None


ROTARY_SIZES = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
CONVENTION = {
    "llama": (LlamaConfig, False),
    "qwen3": (Qwen3Config, False),
    "cohere": (CohereConfig, True),
    "glm": (GlmConfig, True),
}


@pytest.mark.parametrize("name", CONVENTION)
def test_the_rotary_convention_is_detected(name, monkeypatch):
    config_class, interleaved = CONVENTION[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**ROTARY_SIZES)).train()
    seen = []
    true = fisher_probe.kronecker_factors

    def watched(inputs, query_input, rows, *, rotary, **options):
        seen.append((inputs, query_input, rotary))
        return true(inputs, query_input, rows, rotary=rotary, **options)

    monkeypatch.setattr(fisher_probe, "kronecker_factors", watched)
    tokens = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    with FisherProbe(model, factors=("query_output",), sequences=2) as probe, probe.step(0):
        model(input_ids=tokens, use_cache=False)
    assert len(seen) == 2
    for layer, (inputs, query_input, rotary) in enumerate(seen):
        assert rotary.interleaved == interleaved
        attention = model.model.layers[layer].self_attn
        query = attention.q_proj(query_input).view(2, 12, 2, 8)
        if hasattr(attention, "q_norm"):
            query = attention.q_norm(query)
        torch.testing.assert_close(rotary.rotate(query.transpose(1, 2)), inputs.query, rtol=1e-4, atol=1e-5)
