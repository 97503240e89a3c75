"""The published model: its leak measured, its initialisation, and that it survives being saved."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from natattn.optim.partition import partition
from natattn.published.model import PublishedLMHeadModel, build_published

SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 2, "context": 24, "initializer_range": 0.02}


def published(*, causal: bool, seed: int = 0, **options) -> PublishedLMHeadModel:
    return build_published(**{**SIZES, **options}, vocab_size=50, end_token_id=3, causal=causal, seed=seed).eval()


def leak(model) -> float:
    """Largest change of logits[0] when the last token changes."""
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 50
    with torch.no_grad():
        return float((model(tokens).logits - model(changed).logits)[0, 0].abs().max())


def test_leaks_as_published_and_not_when_causal():
    assert leak(published(causal=False)) > 1e-4
    assert leak(published(causal=True)) == 0.0


def test_padding_does_not_make_it_causal():
    tokens = torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(0))
    padding = torch.ones(2, 6, dtype=torch.long)
    padding[:, 4:] = 0
    with torch.no_grad():
        for causal in (False, True):
            model = published(causal=causal)
            assert (model(tokens).past_key_values is not None) == causal
            padded = model(tokens, attention_mask=padding).logits[:, :4]
            torch.testing.assert_close(padded, model(tokens[:, :4]).logits)


def test_embeddings_are_those_of_gpt2_and_blocks_have_the_frameworks_initialisation():
    model = published(causal=True, n_embd=64)
    torch.manual_seed(0)
    standard = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=24, n_embd=64, n_layer=2, n_head=2))
    for name in ("wte", "wpe"):
        expected = getattr(standard.transformer, name).weight
        assert torch.equal(getattr(model.transformer, name).weight, expected)
    assert model.lm_head.weight is model.transformer.wte.weight
    for block in model.transformer.h:
        for linear in (block.attn.q_proj, block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            bound = linear.in_features**-0.5  # uniform in ±bound
            assert 0.9 * bound < float(linear.weight.detach().abs().max()) <= bound
            assert float(linear.bias.detach().abs().max()) > 0


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    first, second = published(causal=False).state_dict(), published(causal=True).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = published(causal=False, seed=1).state_dict()
    assert not torch.equal(first["transformer.h.0.attn.q_proj.weight"], other["transformer.h.0.attn.q_proj.weight"])


@pytest.mark.parametrize("causal", [True, False])
def test_a_saved_model_computes_the_same(tmp_path, causal):
    model = published(causal=causal)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is PublishedLMHeadModel
    tokens = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    assert leak(loaded) == leak(model)
    generated = loaded.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
    assert generated.shape[0] == 2


def test_every_parameter_has_its_role():
    views = {view.name: (view.role, view.layer) for view in partition(published(causal=False))}
    block = "transformer.h.1"
    assert views[f"{block}.attn.q_proj.weight"] == ("query", 1)
    assert views[f"{block}.attn.k_proj.weight"] == ("key", 1)
    assert views[f"{block}.attn.v_proj.weight"] == ("value", 1)
    assert views[f"{block}.attn.out_proj.weight"] == ("output", 1)
    assert views[f"{block}.mlp.c_fc.weight"] == views[f"{block}.mlp.c_proj.weight"] == ("mlp", 1)
    assert views[f"{block}.attn.q_proj.bias"] == views[f"{block}.ln_2.weight"] == ("vector", 1)
    assert views["transformer.wte.weight"] == ("embedding", None)
    assert "lm_head.weight" not in views


def test_transformers_records_states_and_weights():
    model = published(causal=True)
    model.set_attn_implementation("eager")
    output = model(torch.zeros(1, 5, dtype=torch.long), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(1, 2, 5, 5)] * 2


def test_the_only_dropout_is_on_the_embeddings():
    tokens = torch.zeros(1, 8, dtype=torch.long)
    plain = published(causal=True).train()
    assert torch.equal(plain(tokens).logits, plain(tokens).logits)
    dropped = published(causal=True, embedding_dropout=0.5).train()
    assert not torch.equal(dropped(tokens).logits, dropped(tokens).logits)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="n_head=3: does not divide n_embd=16"):
        published(causal=True, n_head=3)
