"""The natural attention function and the probe, on small GPT-2 models."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from natattn.attention.interface import SITE_ATTRIBUTE, register
from natattn.attention.probe import AttentionProbe


def _gpt2(implementation: str) -> GPT2LMHeadModel:
    register()
    config = GPT2Config(
        vocab_size=50, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def _llama(implementation: str) -> LlamaForCausalLM:
    register()
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=24, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [_gpt2, _llama])
@pytest.mark.parametrize("padded", [False, True])
def test_natural_equals_softmax_attention_with_gradients(build, padded, tokens):
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :6] = 0
    results = []
    for implementation in ("eager", "natural"):
        model = build(implementation)
        logits = model(input_ids=tokens, attention_mask=mask if padded else None).logits
        kept = logits[mask.bool()]
        kept.logsumexp(-1).sum().backward()
        results.append((kept.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=1e-5, rtol=1e-4)


def test_without_a_mask_natural_attention_is_causal(tokens):
    model = _gpt2("natural").eval()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    with torch.no_grad():
        difference = model(tokens).logits - model(changed).logits
    assert float(difference[:, :-1].abs().max()) == 0
    assert float(difference[:, -1].abs().max()) > 0


def test_observing_changes_nothing_and_detaching_leaves_no_trace(tokens):
    model = _gpt2("sdpa")
    before = model(tokens).logits
    probe = AttentionProbe(model)
    with probe.step(0):
        observed = model(tokens).logits
    probe.detach()
    assert torch.equal(before, observed)
    assert model.config._attn_implementation == "sdpa"
    assert not any(hasattr(module, SITE_ATTRIBUTE) for module in model.modules())


def test_probe_reads_the_energies_of_each_layer(tokens):
    model = _gpt2("natural")
    captured = {}

    def capture(module, inputs, output):
        query, key, _ = output.split(16, dim=2)
        shape = (3, 20, 2, 8)
        energy = query.view(shape).transpose(1, 2) @ key.view(shape).permute(0, 2, 3, 1) / 8**0.5
        captured[len(captured)] = energy.detach()

    for block in model.transformer.h:
        block.attn.c_attn.register_forward_hook(capture)
    with AttentionProbe(model, row_count=None) as probe, probe.step(0):
        model(tokens)
    pairs = torch.ones(20, 20).tril().bool()
    for layer in (0, 1):
        expected = captured[layer][..., pairs].abs().mean()
        torch.testing.assert_close(probe.mean_absolute_energy(layer), expected)


def test_grouped_query_heads_are_observed(tokens):
    model = _llama("natural")
    with AttentionProbe(model, row_count=None) as probe, probe.step(0):
        model(tokens)
    assert probe.sums(0).absolute_energy.shape == (4,)


def test_micro_batches_add_up_to_the_step(tokens):
    model = _gpt2("natural")
    with AttentionProbe(model, row_count=4) as probe:
        with probe.step(3):
            model(tokens)
        whole = probe.sums(1)
        with probe.step(3):
            for row in tokens:
                model(row[None])
        parts = probe.sums(1)
    torch.testing.assert_close(whole.mean_absolute_energy, parts.mean_absolute_energy)
    assert float(whole.pairs) == float(parts.pairs)


def test_steps_that_are_not_due_are_not_recorded(tokens):
    model = _gpt2("natural")
    with AttentionProbe(model, every=2) as probe:
        with pytest.raises(RuntimeError, match="has not been observed yet"):
            probe.sums(0)
        with probe.step(2):
            model(tokens)
        recorded = probe.sums(0)
        with probe.step(3):
            model(tokens.flip(1))
        assert probe.sums(0) is recorded
        model(tokens.flip(1))
        assert probe.sums(0) is recorded


def test_probes_nest(tokens):
    model = _gpt2("natural")
    outer = AttentionProbe(model, row_count=2)
    with AttentionProbe(model, row_count=None, with_entropy=True) as inner, inner.step(0):
        model(tokens)
    assert inner.sums(0).entropy is not None
    with outer.step(0):
        model(tokens)
    assert outer.sums(0).entropy is None


def test_sampled_rows_leave_the_global_generator_alone(tokens):
    model = _gpt2("natural")
    state = torch.get_rng_state()
    with AttentionProbe(model) as probe, probe.step(0):
        model(tokens)
    assert torch.equal(state, torch.get_rng_state())


def test_statistics_stay_float32_under_autocast(tokens):
    model = _gpt2("natural")
    with AttentionProbe(model) as probe, probe.step(0), torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens)
    assert probe.sums(0).absolute_energy.dtype == torch.float32
