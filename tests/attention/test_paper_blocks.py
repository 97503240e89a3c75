"""The paper's attention and block: what they compute, what they refuse, and what can be read of them."""

import copy
import math

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache

from natattn.attention.attach import attach, fold_temperature
from natattn.attention.block_energies import BlockEnergies
from natattn.attention.gpt2 import GPT2NaturalAttentionBlock, NaturalAttention, blocks_of
from natattn.attention.modules import NaturalGradient, Tempered, attention_modules
from natattn.attention.probe import AttentionProbe

HEADS, HEAD_DIM, WIDTH, LAYERS, LENGTH = 2, 4, 8, 2, 7


def config_of(**options) -> GPT2Config:
    return GPT2Config(
        vocab_size=30, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0,
        embd_pdrop=0.0, **options,
    )  # fmt: skip


def attention_of(causal: bool = True, **options) -> NaturalAttention:
    torch.manual_seed(0)
    attention = NaturalAttention(config_of(**options), layer_idx=0, causal=causal).double()
    with torch.no_grad():  # energies far enough from 0 that patterns are not uniform
        attention.q_proj.weight.mul_(4)
    return attention


def model_of(*, layer_idx: bool = False, causal: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = config_of()
    model = GPT2LMHeadModel(config)
    for layer in range(LAYERS):
        model.transformer.h[layer] = GPT2NaturalAttentionBlock(config, layer if layer_idx else None, causal)
    return model.eval()


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(30, (3, LENGTH), generator=torch.Generator().manual_seed(2))


def dense(attention: NaturalAttention, states: torch.Tensor, allowed: torch.Tensor):
    """(output, weights, energies), written out as the definition reads; rows without a key give 0."""

    def split(projection):
        return projection(states).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

    query, key, value = split(attention.q_proj), split(attention.k_proj), split(attention.v_proj)
    energies = query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM)
    weights = torch.softmax(energies.masked_fill(~allowed, -torch.inf), -1).nan_to_num()
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights, energies


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
PADDING = torch.ones(3, LENGTH, dtype=torch.long)
PADDING[0, :2], PADDING[1, 5:] = 0, 0  # on the left, so that some rows have no key at all, and on the right
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
def test_equals_dense_softmax_attention_under_every_mask(states, causal, name):
    mask, allowed = MASKS[name]
    allowed = allowed & CAUSAL if causal else allowed
    attention = attention_of(causal)
    output, weights = attention(states, attention_mask=mask, output_attentions=True)
    expected, expected_weights, energies = dense(attention, states, allowed)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(attention.energies, energies)


def test_an_additive_bias_is_part_of_the_energies(states):
    attention = attention_of(causal=False)
    output, weights = attention(states, attention_mask=BIAS[None, None], output_attentions=True)
    energies = dense(attention, states, torch.ones(LENGTH, LENGTH, dtype=torch.bool))[2] + BIAS
    torch.testing.assert_close(attention.energies, energies)
    torch.testing.assert_close(weights, torch.softmax(energies, -1))
    value = attention.v_proj(states).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    torch.testing.assert_close(output, attention.out_proj((weights @ value).transpose(1, 2).flatten(2)))


def test_gradients_equal_those_of_dense_attention(states):
    attention = attention_of()
    gradients = []
    for output in (attention(states, attention_mask=PADDING)[0], dense(attention, states, CAUSAL)[0]):
        attention.zero_grad()
        output[2].square().sum().backward()  # the sequence without padding
        gradients.append([parameter.grad.clone() for parameter in attention.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


def test_rows_without_a_key_have_finite_gradients(states):
    attention = attention_of()
    for mask in (PADDING, torch.full((1, 1, LENGTH, LENGTH), torch.finfo(torch.float64).min, dtype=torch.float64)):
        attention.zero_grad()
        attention(states, attention_mask=mask)[0].square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_is_causal_by_default_whatever_the_mask_allows(tokens):
    model = model_of()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 30
    everything = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    for mask in (None, torch.ones_like(tokens), everything, torch.zeros(1, 1, LENGTH, LENGTH)):
        with torch.no_grad():
            first, second = (model(ids, attention_mask=mask).logits for ids in (tokens, changed))
        assert torch.equal(first[:, :-1], second[:, :-1])
        assert not torch.equal(first[:, -1], second[:, -1])


def test_a_bidirectional_block_leaks_and_says_so_to_the_cache(tokens):
    model = model_of(causal=False)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 30
    with torch.no_grad():
        output = model(tokens)
        assert float((output.logits - model(changed).logits)[:, 0].abs().max()) > 1e-3
        with pytest.raises(ValueError, match="use_cache=False"):
            model(tokens[:, :1], past_key_values=output.past_key_values)


@pytest.mark.parametrize("layer_idx", [True, False])
@pytest.mark.parametrize("pieces", [(1,) * LENGTH, (3, 4), (4, 1, 2)])
@pytest.mark.parametrize("static", [False, True])
def test_a_cache_changes_nothing(tokens, layer_idx, pieces, static):
    model = model_of(layer_idx=layer_idx)
    cache = StaticCache(config=model.config, max_cache_len=12) if static else DynamicCache()
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        parts = [model(part, past_key_values=cache).logits for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_a_layer_on_its_own_goes_on_from_a_cache(states):
    attention = attention_of()
    whole, _ = attention(states)
    cache = DynamicCache()
    parts = [attention(part, cache)[0] for part in states.split((3, 4), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert attention.energies.shape == (3, HEADS, 4, LENGTH)


def test_generates_alike_with_and_without_a_cache(tokens):
    model = model_of()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": PADDING}
    assert torch.equal(model.generate(tokens, **options), model.generate(tokens, use_cache=False, **options))


def test_a_cache_without_a_free_place_asks_for_the_index(tokens):
    cache = DynamicCache(config=config_of())
    model = model_of()
    model(tokens, past_key_values=cache)
    with pytest.raises(ValueError, match="layer_idx"):
        model_of()(tokens, past_key_values=cache)


def test_head_masks_of_every_shape(states):
    attention = attention_of()
    factors = torch.tensor([0.0, 2.0], dtype=torch.float64)
    expected_weights = dense(attention, states, CAUSAL)[1] * factors.view(1, HEADS, 1, 1)
    value = attention.v_proj(states).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    expected = attention.out_proj((expected_weights @ value).transpose(1, 2).flatten(2))
    of_layers = torch.stack([factors, torch.ones_like(factors)])
    for mask in (factors, of_layers, factors.view(1, HEADS, 1, 1), factors.view(1, HEADS, 1, 1).expand(3, -1, -1, -1)):
        output, weights = attention(states, head_mask=mask, output_attentions=True)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(weights, expected_weights)


def test_a_head_mask_reaches_the_blocks_of_a_model(tokens):
    model = model_of(layer_idx=True)
    mask = torch.ones(LAYERS, HEADS)
    mask[1, 0] = 0
    with torch.no_grad():
        masked = model(tokens, head_mask=mask).logits
        model.transformer.h[1].attn.v_proj.weight[:HEAD_DIM] = 0
        model.transformer.h[1].attn.v_proj.bias[:HEAD_DIM] = 0
        torch.testing.assert_close(masked, model(tokens).logits)


def test_energies_are_those_of_the_last_forward_detached(states):
    attention = attention_of()
    for read in (lambda: attention.energies, attention.energy_statistics):
        with pytest.raises(RuntimeError, match="forward"):
            read()
    attention(states * 5)
    attention(states[:, :5].requires_grad_())
    assert attention.energies.shape == (3, HEADS, 5, 5)
    assert not attention.energies.requires_grad
    torch.testing.assert_close(attention.energies, dense(attention, states[:, :5], CAUSAL[:5, :5])[2].detach())
    assert copy.deepcopy(attention).energies.equal(attention.energies)
    assert not any("last" in name for name in attention.state_dict())


def test_energy_statistics_leave_out_forbidden_pairs_and_padded_queries(states):
    attention = attention_of()
    attention(states, attention_mask=PADDING)
    real = PADDING.bool()
    allowed = (CAUSAL & real[:, None, None] & real[:, None, :, None]).expand(-1, HEADS, -1, -1)
    expected = torch.stack([attention.energies[:, h][allowed[:, h]].abs().mean() for h in range(HEADS)])
    torch.testing.assert_close(attention.energy_statistics()["mean_absolute_energy"], expected)


def test_energies_are_float32_under_autocast(tokens):
    model = model_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens)
        attention = model.transformer.h[0].attn
        assert attention.observed.query.dtype == torch.bfloat16
        energies = attention.energies
        mean = attention.energy_statistics()["mean_absolute_energy"]
    assert energies.dtype == mean.dtype == torch.float32
    assert not energies.bfloat16().float().equal(energies), "rounded to half precision"
    torch.testing.assert_close(mean, energies[..., CAUSAL].abs().mean((0, 2)))


def test_compiles_in_one_graph_and_keeps_its_energies(tokens):
    model = model_of().train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(tokens, use_cache=False).logits
    energies = model.transformer.h[1].attn.energies
    compiled(tokens.flip(1), use_cache=False)
    assert not model.transformer.h[1].attn.energies.equal(energies)
    torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected)
    torch.testing.assert_close(model.transformer.h[1].attn.energies, energies)


def test_energies_as_the_published_code_averaged_them(tokens):
    free, causal = (model_of(causal=is_causal) for is_causal in (False, True))
    for model in (free, causal):
        model(tokens)
    for saturate in (True, False):
        energies = BlockEnergies.of(free, masked_energies_saturate=saturate)
        expected = free.transformer.h[1].attn.energies.abs().mean()
        torch.testing.assert_close(energies.mean_absolute_energy(1), expected)
    assert BlockEnergies.of(causal).mean_absolute_energy(0) < 10
    masked = BlockEnergies.of(causal, masked_energies_saturate=True).mean_absolute_energy(0)
    assert float(masked) == pytest.approx(1e9 * (LENGTH - 1) / (2 * LENGTH), rel=1e-3)  # the share of masked pairs
    with pytest.raises(ValueError, match="no NaturalAttention"):
        BlockEnergies.of(GPT2LMHeadModel(config_of()))


def test_the_probe_observes_it_and_leaves_it_as_it_was(tokens):
    model = model_of()
    assert [layer for layer, _ in attention_modules(model)] == [0, 1]
    before = model(tokens).logits
    with AttentionProbe(model, row_count=None) as probe, probe.step(0):
        observed = model(tokens).logits
    assert torch.equal(before, observed)
    for layer, attention in attention_modules(model):
        own = attention.energy_statistics()["mean_absolute_energy"].mean()
        torch.testing.assert_close(probe.mean_absolute_energy(layer), own)
    assert model.config._attn_implementation == "sdpa"


def test_other_attention_types_run_on_it(tokens):
    model = model_of()
    plain = model(tokens).logits
    attach(model, NaturalGradient(damping=0.1))
    torch.testing.assert_close(model(tokens).logits, plain)
    attach(model, Tempered(0.5))
    tempered = model(tokens).logits
    assert not torch.allclose(tempered, plain)
    weights = model.transformer.h[0].attn(torch.ones(1, 3, WIDTH), output_attentions=True)[1]
    assert weights.sum(-1).allclose(torch.ones(1))
    fold_temperature(model)
    torch.testing.assert_close(model(tokens).logits, tempered)


def test_transformers_records_its_states_and_weights(tokens):
    model = model_of()
    plain = model(tokens, output_hidden_states=True)
    assert len(plain.hidden_states) == LAYERS + 1
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(tokens).logits, plain.logits)
    _, weights = model.transformer.h[0].attn(torch.randn(1, 3, WIDTH))
    assert weights.shape == (1, HEADS, 3, 3)


def test_a_block_returns_weights_on_request(states):
    block = GPT2NaturalAttentionBlock(config_of()).double()
    output, weights = block(states, output_attentions=True)
    torch.testing.assert_close(block(states), output)
    assert weights.shape == (3, HEADS, LENGTH, LENGTH)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_gives_the_same_gradients(tokens):
    gradients = []
    for checkpointing in (False, True):
        model = model_of().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
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
