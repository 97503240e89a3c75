"""QK-norm, soft cap and QK-clip against the definitions written out, on fused and on grouped-query weights."""

import math

import pytest
import torch

from natattn.attention.probe import AttentionProbe
from natattn.attention.stabilisers import (
    Stabilisers,
    StabiliserSettings,
    attach_stabilisers,
    clip_query_key_weights,
    restore_stabilisers,
    saved_stabilisers,
)
from natattn.errors import UserError


def maxima(model, tokens) -> dict[int, torch.Tensor]:
    with AttentionProbe(model, quantities=("maximum",), row_count=None) as probe, torch.no_grad():
        with probe.step(0):
            model(tokens)
        return {layer: probe.statistics(layer)["maximum"] for layer in probe.layers}


def written_out(stabilisers: Stabilisers):
    """An attention function that spells the equations out, to register with transformers."""

    def attention(module, query, key, value, attention_mask, scaling=None, **_):
        if stabilisers.query_key_norm:
            query, key = (t / t.square().mean(-1, keepdim=True).sqrt() for t in (query, key))
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        energy = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if stabilisers.softcap is not None:
            energy = stabilisers.softcap * torch.tanh(energy / stabilisers.softcap)
        future = torch.ones(energy.shape[-2:]).triu(1).bool()
        pattern = energy.masked_fill(future, -torch.inf).softmax(-1)
        return (pattern @ value).transpose(1, 2), None

    return attention


@pytest.mark.parametrize(
    "stabilisers", [Stabilisers(True), Stabilisers(False, 1.5), Stabilisers(True, 0.7)], ids=["norm", "cap", "both"]
)
def test_outputs_and_gradients_are_those_of_the_equations(build, tokens, stabilisers):
    from transformers import AttentionInterface

    model, reference = build().double(), build().double()
    attach_stabilisers(model, stabilisers)
    AttentionInterface.register("written_out", written_out(stabilisers))
    reference.set_attn_implementation("written_out")
    expected = reference(tokens).logits
    actual = model(tokens).logits
    torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_energies_are_bounded_as_documented(build, tokens):
    model = build(initializer_range=1.0)
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    assert max(float(m.max()) for m in maxima(model, tokens).values()) > math.sqrt(head_dim)
    attach_stabilisers(model, Stabilisers(query_key_norm=True))
    assert max(float(m.max()) for m in maxima(model, tokens).values()) <= math.sqrt(head_dim) * (1 + 1e-6)
    attach_stabilisers(model, Stabilisers(softcap=0.5))
    assert max(float(m.max()) for m in maxima(model, tokens).values()) <= 0.5


def test_a_saved_model_is_restored_to_what_it_computed(build, tokens, tmp_path):
    model = build()
    attach_stabilisers(model, Stabilisers(True, 5.0))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert saved_stabilisers(loaded.config) == Stabilisers(True, 5.0)
    with torch.no_grad():
        assert not torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-3)
        restore_stabilisers(loaded)
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


def test_clipping_brings_every_head_to_the_threshold_and_leaves_the_others(build, tokens):
    model = build()
    before = maxima(model, tokens)
    threshold = float(before[0].mean())
    factors = clip_query_key_weights(model, {0: before[0]}, threshold)
    after = maxima(model, tokens)[0]
    torch.testing.assert_close(after, before[0].clamp_max(threshold))
    torch.testing.assert_close(factors[0], (threshold / before[0]).clamp_max(1))
    assert bool((factors[0] < 1).any())
    assert bool((factors[0] == 1).any())


def test_clipping_scales_biases_too(gpt2, tokens):
    model = gpt2()
    torch.nn.init.normal_(model.transformer.h[0].attn.c_attn.bias, std=2.0)
    before = maxima(model, tokens)[0]
    clip_query_key_weights(model, {0: before}, float(before.min()) / 2)
    torch.testing.assert_close(maxima(model, tokens)[0], (before.min() / 2).expand(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("maximum", [-torch.inf, -3.0, 0.0])
def test_heads_below_the_threshold_are_not_touched(gpt2, maximum):
    model, untouched = gpt2(), gpt2()
    factors = clip_query_key_weights(model, {0: torch.full((2,), maximum)}, 1.0)
    assert torch.equal(factors[0], torch.ones(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_what_cannot_be_clipped_or_is_out_of_range_says_so(gpt2):
    model = gpt2()
    with pytest.raises(ValueError, match="threshold=0"):
        clip_query_key_weights(model, {}, 0)
    with pytest.raises(ValueError, match="softcap=-1"):
        Stabilisers(softcap=-1.0)
    attach_stabilisers(model, Stabilisers(True))
    with pytest.raises(ValueError, match="normalises its queries"):
        clip_query_key_weights(model, {0: torch.ones(2)}, 1.0)
    with pytest.raises(UserError, match=r"stabilisers: .* normalises its queries"):
        StabiliserSettings(qk_norm=True, qk_clip=1.0).apply_to(model)
    model.config.natattn_stabilisers = {"query_key_norm": "yes"}
    with pytest.raises(ValueError, match="natattn_stabilisers"):
        restore_stabilisers(model)


def test_models_with_their_own_are_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 24, "vocab_size": 30, "head_dim": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match="normalises its queries and keys already"):
        attach_stabilisers(Qwen3ForCausalLM(Qwen3Config(**sizes)), Stabilisers(True))
    with pytest.raises(ValueError, match="soft cap of its own"):
        attach_stabilisers(Gemma2ForCausalLM(Gemma2Config(**sizes)), Stabilisers(softcap=3.0))
