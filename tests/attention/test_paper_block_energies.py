"""What can be read of the paper's attention: the energies of its last forward pass, as they are and as published."""

import copy

import pytest
import torch
from paper_blocks import CAUSAL, HEADS, LENGTH, PADDING, STATES, TOKENS, attention_of, config_of, dense, model_of
from transformers import GPT2LMHeadModel

from natattn.attention.layers import attention_layers
from natattn.attention.probe import AttentionProbe
from natattn.published.block_energies import BlockEnergies


def test_energies_are_those_of_the_last_forward_detached():
    attention = attention_of()
    for read in (lambda: attention.energies, attention.energy_statistics):
        with pytest.raises(RuntimeError, match="forward"):
            read()
    attention(STATES * 5)
    attention(STATES[:, :5].requires_grad_())
    assert attention.energies.shape == (3, HEADS, 5, 5)
    assert not attention.energies.requires_grad
    torch.testing.assert_close(attention.energies, dense(attention, STATES[:, :5], CAUSAL[:5, :5])[2].detach())
    assert copy.deepcopy(attention).energies.equal(attention.energies)
    assert not any("last" in name for name in attention.state_dict())


def test_energy_statistics_leave_out_forbidden_pairs_and_padded_queries():
    attention = attention_of()
    attention(STATES, attention_mask=PADDING)
    real = PADDING.bool()
    allowed = (CAUSAL & real[:, None, None] & real[:, None, :, None]).expand(-1, HEADS, -1, -1)
    expected = torch.stack([attention.energies[:, h][allowed[:, h]].abs().mean() for h in range(HEADS)])
    torch.testing.assert_close(attention.energy_statistics()["mean_absolute_energy"], expected)


def test_energies_are_float32_under_autocast():
    model = model_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(TOKENS)
        attention = model.transformer.h[0].attn
        assert attention.observed.query.dtype == torch.bfloat16
        energies = attention.energies
        mean = attention.energy_statistics()["mean_absolute_energy"]
    assert energies.dtype == mean.dtype == torch.float32
    assert not energies.bfloat16().float().equal(energies), "rounded to half precision"
    torch.testing.assert_close(mean, energies[..., CAUSAL].abs().mean((0, 2)))


def test_compiles_in_one_graph_and_keeps_its_energies():
    model = model_of().train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(TOKENS, use_cache=False).logits
    energies = model.transformer.h[1].attn.energies
    compiled(TOKENS.flip(1), use_cache=False)
    assert not model.transformer.h[1].attn.energies.equal(energies)
    torch.testing.assert_close(compiled(TOKENS, use_cache=False).logits, expected)
    torch.testing.assert_close(model.transformer.h[1].attn.energies, energies)


def test_energies_as_the_published_code_averaged_them():
    free, causal = (model_of(causal=is_causal) for is_causal in (False, True))
    for model in (free, causal):
        model(TOKENS)
    for saturate in (True, False):
        energies = BlockEnergies.of(free, masked_energies_saturate=saturate)
        expected = free.transformer.h[1].attn.energies.abs().mean()
        torch.testing.assert_close(energies.mean_absolute_energy(1), expected)
    assert BlockEnergies.of(causal).mean_absolute_energy(0) < 10
    masked = BlockEnergies.of(causal, masked_energies_saturate=True).mean_absolute_energy(0)
    assert float(masked) == pytest.approx(1e9 * (LENGTH - 1) / (2 * LENGTH), rel=1e-3)  # the share of masked pairs
    with pytest.raises(ValueError, match="no NaturalAttention"):
        BlockEnergies.of(GPT2LMHeadModel(config_of()))


def test_the_probe_observes_it_and_leaves_it_as_it_was():
    model = model_of()
    assert [layer.layer for layer in attention_layers(model)] == [0, 1]
    before = model(TOKENS).logits
    with AttentionProbe(model, row_count=None) as probe, probe.step(0):
        observed = model(TOKENS).logits
    assert torch.equal(before, observed)
    for layer in attention_layers(model):
        own = layer.module.energy_statistics()["mean_absolute_energy"].mean()
        torch.testing.assert_close(probe.mean_absolute_energy(layer.layer), own)
    assert model.config._attn_implementation == "sdpa"
