"""The paper's attention and block: what they compute and what they refuse."""

import copy

import pytest
import torch
from paper_blocks import (
    CAUSAL,
    HEAD_DIM,
    HEADS,
    LAYERS,
    LENGTH,
    PADDING,
    STATES,
    TOKENS,
    WIDTH,
    attention_of,
    config_of,
    dense,
    model_of,
)
from transformers import DynamicCache, GPT2LMHeadModel, StaticCache

from natattn.attention.layers import attach
from natattn.attention.types.natural_gradient import NaturalGradient
from natattn.attention.types.tempered import Tempered, fold_temperature
from natattn.published.attention import GPT2NaturalAttentionBlock, NaturalAttention, blocks_of

BLOCKS = torch.arange(LENGTH)[:, None] // 3 == torch.arange(LENGTH) // 3
ROWLESS = BLOCKS & (torch.arange(LENGTH)[:, None] != 4)  # a row whose every key is forbidden gives 0, not a mean
BIAS = torch.linspace(-1, 1, LENGTH).double().expand(LENGTH, -1)

MASKS = {
    "none": (None, torch.ones(LENGTH, LENGTH, dtype=torch.bool)),
    "padding": (PADDING, PADDING.bool()[:, None, None]),
    "boolean padding": (PADDING.bool(), PADDING.bool()[:, None, None]),
    "four dimensions": (BLOCKS[None, None], BLOCKS),
    "additive minimum": (torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~BLOCKS, torch.finfo().min), BLOCKS),
    "additive, a row without keys": (
        torch.zeros(LENGTH, LENGTH).masked_fill(~ROWLESS, torch.finfo().min)[None, None],
        ROWLESS,
    ),
    "additive infinity": (torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~BLOCKS, -torch.inf), BLOCKS),
    "additive as published": (torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~BLOCKS, -1e9), BLOCKS),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_equals_dense_softmax_attention_under_every_mask(causal, name):
    mask, allowed = MASKS[name]
    allowed = allowed & CAUSAL if causal else allowed
    attention = attention_of(causal)
    output, weights = attention(STATES, attention_mask=mask, output_attentions=True)
    expected, expected_weights, energies = dense(attention, STATES, allowed)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(attention.energies, energies)


def test_an_additive_bias_is_part_of_the_energies():
    attention = attention_of(causal=False)
    output, weights = attention(STATES, attention_mask=BIAS[None, None], output_attentions=True)
    energies = dense(attention, STATES, torch.ones(LENGTH, LENGTH, dtype=torch.bool))[2] + BIAS
    torch.testing.assert_close(attention.energies, energies)
    torch.testing.assert_close(weights, torch.softmax(energies, -1))
    value = attention.v_proj(STATES).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    torch.testing.assert_close(output, attention.out_proj((weights @ value).transpose(1, 2).flatten(2)))


def test_gradients_equal_those_of_dense_attention():
    attention = attention_of()
    gradients = []
    for output in (attention(STATES, attention_mask=PADDING)[0], dense(attention, STATES, CAUSAL)[0]):
        attention.zero_grad()
        output[2].square().sum().backward()  # the sequence without padding
        gradients.append([parameter.grad.clone() for parameter in attention.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


def test_rows_without_a_key_have_finite_gradients():
    attention = attention_of()
    for mask in (PADDING, torch.full((1, 1, LENGTH, LENGTH), torch.finfo(torch.float64).min, dtype=torch.float64)):
        attention.zero_grad()
        attention(STATES, attention_mask=mask)[0].square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_is_causal_by_default_whatever_the_mask_allows():
    model = model_of()
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 30
    everything = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    for mask in (None, torch.ones_like(TOKENS), everything, torch.zeros(1, 1, LENGTH, LENGTH)):
        with torch.no_grad():
            first, second = (model(ids, attention_mask=mask).logits for ids in (TOKENS, changed))
        assert torch.equal(first[:, :-1], second[:, :-1])
        assert not torch.equal(first[:, -1], second[:, -1])


def test_a_bidirectional_block_leaks_and_says_so_to_the_cache():
    model = model_of(causal=False)
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 30
    with torch.no_grad():
        output = model(TOKENS)
        assert float((output.logits - model(changed).logits)[:, 0].abs().max()) > 1e-3
        with pytest.raises(ValueError, match="use_cache=False"):
            model(TOKENS[:, :1], past_key_values=output.past_key_values)


@pytest.mark.parametrize("layer_idx", [True, False])
@pytest.mark.parametrize("pieces", [(1,) * LENGTH, (3, 4), (4, 1, 2)])
@pytest.mark.parametrize("static", [False, True])
def test_a_cache_changes_nothing(layer_idx, pieces, static):
    model = model_of(layer_idx=layer_idx)
    cache = StaticCache(config=model.config, max_cache_len=12) if static else DynamicCache()
    with torch.no_grad():
        whole = model(TOKENS, use_cache=False).logits
        parts = [model(part, past_key_values=cache).logits for part in TOKENS.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_a_layer_on_its_own_goes_on_from_a_cache():
    attention = attention_of()
    whole, _ = attention(STATES)
    cache = DynamicCache()
    parts = [attention(part, cache)[0] for part in STATES.split((3, 4), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert attention.energies.shape == (3, HEADS, 4, LENGTH)


def test_generates_alike_with_and_without_a_cache():
    model = model_of()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": PADDING}
    assert torch.equal(model.generate(TOKENS, **options), model.generate(TOKENS, use_cache=False, **options))


def test_a_cache_without_a_free_place_asks_for_the_index():
    cache = DynamicCache(config=config_of())
    model = model_of()
    model(TOKENS, past_key_values=cache)
    with pytest.raises(ValueError, match="layer_idx"):
        model_of()(TOKENS, past_key_values=cache)


def test_head_masks_of_every_shape():
    attention = attention_of()
    factors = torch.tensor([0.0, 2.0], dtype=torch.float64)
    expected_weights = dense(attention, STATES, CAUSAL)[1] * factors.view(1, HEADS, 1, 1)
    value = attention.v_proj(STATES).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    expected = attention.out_proj((expected_weights @ value).transpose(1, 2).flatten(2))
    of_layers = torch.stack([factors, torch.ones_like(factors)])
    for mask in (factors, of_layers, factors.view(1, HEADS, 1, 1), factors.view(1, HEADS, 1, 1).expand(3, -1, -1, -1)):
        output, weights = attention(STATES, head_mask=mask, output_attentions=True)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(weights, expected_weights)


def test_a_head_mask_reaches_the_blocks_of_a_model():
    model = model_of(layer_idx=True)
    mask = torch.ones(LAYERS, HEADS)
    mask[1, 0] = 0
    with torch.no_grad():
        masked = model(TOKENS, head_mask=mask).logits
        model.transformer.h[1].attn.v_proj.weight[:HEAD_DIM] = 0
        model.transformer.h[1].attn.v_proj.bias[:HEAD_DIM] = 0
        torch.testing.assert_close(masked, model(TOKENS).logits)


def test_other_attention_types_run_on_it():
    model = model_of()
    plain = model(TOKENS).logits
    attach(model, NaturalGradient(damping=0.1))
    torch.testing.assert_close(model(TOKENS).logits, plain)
    attach(model, Tempered(0.5))
    tempered = model(TOKENS).logits
    assert not torch.allclose(tempered, plain)
    weights = model.transformer.h[0].attn(torch.ones(1, 3, WIDTH), output_attentions=True)[1]
    assert weights.sum(-1).allclose(torch.ones(1))
    fold_temperature(model)
    torch.testing.assert_close(model(TOKENS).logits, tempered)


def test_transformers_records_its_states_and_weights():
    model = model_of()
    plain = model(TOKENS, output_hidden_states=True)
    assert len(plain.hidden_states) == LAYERS + 1
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(TOKENS).logits, plain.logits)
    _, weights = model.transformer.h[0].attn(torch.randn(1, 3, WIDTH))
    assert weights.shape == (1, HEADS, 3, 3)


def test_a_block_returns_weights_on_request():
    block = GPT2NaturalAttentionBlock(config_of()).double()
    output, weights = block(STATES, output_attentions=True)
    torch.testing.assert_close(block(STATES), output)
    assert weights.shape == (3, HEADS, LENGTH, LENGTH)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = model_of().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_has_the_frameworks_initialisation_and_no_dropout():
    torch.manual_seed(0)
    block = GPT2NaturalAttentionBlock(config_of()).train()
    torch.manual_seed(0)
    expected = torch.nn.Linear(WIDTH, WIDTH)
    assert torch.equal(block.attn.q_proj.weight, expected.weight)
    states = torch.randn(1, 4, WIDTH)
    assert torch.equal(block(states), block(states))


def test_blocks_are_found_by_their_parameters_copies_too():
    model = model_of()
    assert blocks_of(model.parameters()) == list(model.transformer.h)
    twin = copy.deepcopy(model)
    assert blocks_of(twin.parameters()) == list(twin.transformer.h)
    assert blocks_of(GPT2LMHeadModel(config_of()).parameters()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_states": torch.zeros(2, WIDTH)}, "hidden_states: shape"),
        ({"hidden_states": torch.zeros(2, 3, WIDTH + 1)}, r"needs \[batch, queries, 8\]"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask: shape \[2, 4\], needs \[2, 3\]"),
        ({"attention_mask": torch.ones(2, 1, 3, 4, dtype=torch.bool)}, "attention_mask: shape"),
        ({"attention_mask": torch.ones(2, 1, 3, 3, dtype=torch.long)}, "boolean or floating"),
        ({"head_mask": torch.ones(HEADS + 1)}, r"head_mask: shape \[3\], needs \[2\]"),
        ({"head_mask": torch.ones(LAYERS, HEADS)}, "layer_idx"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    block = GPT2NaturalAttentionBlock(config_of())
    with pytest.raises(ValueError, match=message):
        block.attn(**{"hidden_states": torch.zeros(2, 3, WIDTH), **options})


def test_encoder_states_are_refused():
    states = torch.zeros(2, 3, WIDTH)
    with pytest.raises(ValueError, match="cross-attention"):
        GPT2NaturalAttentionBlock(config_of())(states, encoder_hidden_states=states)


def test_configurations_that_it_cannot_have_are_named():
    config = config_of()
    config.n_head = 3
    with pytest.raises(ValueError, match="n_head=3: does not divide n_embd=8"):
        NaturalAttention(config)
    with pytest.raises(ValueError, match="cross"):
        GPT2NaturalAttentionBlock(config_of(add_cross_attention=True))
    with pytest.raises(ValueError, match="layer_idx"):
        NaturalAttention(config_of(scale_attn_by_inverse_layer_idx=True))
    inverse = NaturalAttention(config_of(scale_attn_by_inverse_layer_idx=True), layer_idx=1)
    assert inverse.scaling == pytest.approx(0.25)
    assert NaturalAttention(config_of(scale_attn_weights=False)).scaling == 1.0
