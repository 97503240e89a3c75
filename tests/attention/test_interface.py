"""The attention types inside transformers models: outputs, gradients, temperature, export."""

import importlib
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5Model,
)

from natattn.attention.layers import PARAMETERS_ATTRIBUTE, attach, attention_layers, detach
from natattn.attention.types.natural_gradient import NaturalGradient
from natattn.attention.types.tempered import Tempered, fold_temperature, set_temperature


def _gradients(model, tokens, mask=None):
    """Logits on real tokens, and the gradients of a loss on them."""
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    kept = logits if mask is None else logits[mask.bool()]
    kept.logsumexp(-1).sum().backward()
    return kept.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def _mask(tokens, padded):
    if not padded:
        return None
    mask = torch.ones_like(tokens)
    mask[1, :6] = 0
    return mask


@pytest.mark.parametrize("padded", [False, True])
def test_natural_equals_softmax_attention_with_gradients(build, padded, tokens):
    mask = _mask(tokens, padded)
    expected, actual = (_gradients(build(name, initializer_range=0.1), tokens, mask) for name in ("eager", "natural"))
    torch.testing.assert_close(actual[0], expected[0], atol=1e-6, rtol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("parameters", [None, NaturalGradient(0.1), Tempered(1.5)])
def test_without_a_mask_attention_is_causal(gpt2, tokens, parameters):
    model = gpt2("natural")
    if parameters is not None:
        attach(model, parameters)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    difference = model(tokens).logits - model(changed).logits
    assert float(difference[:, :-1].detach().abs().max()) == 0
    assert float(difference[:, -1].detach().abs().max()) > 0


@pytest.mark.parametrize("padded", [False, True])
def test_natural_gradient_changes_only_what_reaches_queries_and_keys(gpt2, padded, tokens):
    mask = _mask(tokens, padded)
    plain, natural = gpt2(), gpt2()
    attach(natural, NaturalGradient(damping=1e-3))
    with torch.no_grad():
        assert torch.equal(plain(tokens, attention_mask=mask).logits, natural(tokens, attention_mask=mask).logits)
    expected, actual = _gradients(plain, tokens, mask), _gradients(natural, tokens, mask)
    torch.testing.assert_close(actual[0], expected[0], atol=1e-6, rtol=1e-5)
    # In the last layer nothing but W_Q and W_K is behind the pattern.
    last = "transformer.h.1.attn.c_attn.weight"
    query, key, value = (actual[1][last] - expected[1][last]).split(16, dim=1)
    assert float(value.abs().max()) < 1e-5
    assert float(query.abs().max()) > 1e-2
    assert float(key.abs().max()) > 1e-2
    name = "transformer.h.1.mlp.c_fc.weight"
    torch.testing.assert_close(actual[1][name], expected[1][name], atol=1e-5, rtol=1e-4)


def test_natural_gradient_with_large_damping_is_plain_attention(build, tokens):
    model = build()
    attach(model, NaturalGradient(damping=1e6))
    expected, actual = _gradients(build(), tokens), _gradients(model, tokens)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_natural_gradient_under_checkpointing_with_dropout(gpt2, tokens, use_reentrant):
    """The recomputed pass must draw the same dropout as the first one, which may have run without gradients."""
    results = []
    for checkpointing in (False, True):
        model = gpt2().train()
        for layer in attention_layers(model):
            layer.module.attn_dropout.p = 0.3
        attach(model, NaturalGradient(damping=0.1))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(3)
        results.append(_gradients(model, tokens))
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient)


def test_autocast_keeps_each_type_near_its_float32_output(build, tokens):
    for parameters in (NaturalGradient(0.1), Tempered(torch.tensor([0.7])), Tempered(0.7)):
        model = build()
        attach(model, parameters)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(tokens).logits
        torch.testing.assert_close(half.float(), model(tokens).logits, rtol=0.1, atol=0.1)


def test_temperature_one_is_plain_attention(build, tokens):
    model = build()
    expected = model(tokens).logits
    attach(model, Tempered(1.0))
    assert torch.equal(model(tokens).logits, expected)
    detach(model)
    assert model.config._attn_implementation == "sdpa"
    assert not any(hasattr(module, PARAMETERS_ATTRIBUTE) for module in model.modules())


@pytest.mark.parametrize("temperature", [0.5, 2.0, "per head"])
@pytest.mark.parametrize("padded", [False, True])
def test_tempered_attention_is_softmax_of_energies_over_temperature(build, tokens, temperature, padded):
    model, reference = build(), build("eager")
    heads = model.config.num_attention_heads
    T = torch.linspace(0.5, 2.0, heads) if temperature == "per head" else temperature
    attach(model, Tempered(T))
    # The same model by other means: W_Q of every head divided by its temperature.
    factor = (1 / torch.as_tensor(T).expand(heads)).repeat_interleave(16 // heads)
    with torch.no_grad():
        for layer in attention_layers(reference):
            if hasattr(layer.module, "q_proj"):
                layer.module.q_proj.weight *= factor[:, None]
            else:
                layer.module.c_attn.weight[:, :16] *= factor
                layer.module.c_attn.bias[:16] *= factor
    mask = _mask(tokens, padded)
    kept = slice(None) if mask is None else mask.bool()
    expected = reference(tokens, attention_mask=mask).logits[kept]
    torch.testing.assert_close(model(tokens, attention_mask=mask).logits[kept], expected, atol=1e-5, rtol=1e-4)


def test_scheduled_temperature_changes_in_place_without_recompiling(gpt2, tokens):
    model = gpt2()
    attach(model, Tempered(torch.tensor([1.0])))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    graphs = []
    for temperature in (1.0, 2.0, 0.5):
        set_temperature(model, temperature)
        expected = gpt2()
        attach(expected, Tempered(temperature))
        actual = compiled(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(actual, expected(tokens).logits, atol=1e-5, rtol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1
    torch._dynamo.reset()


def test_generation_with_a_cache_is_that_of_the_whole_sequence(build, tokens):
    model = build()
    attach(model, Tempered(0.7))
    generated = model.generate(tokens[:, :5], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    logits = model(generated, use_cache=False).logits
    assert torch.equal(logits[:, 4:-1].argmax(-1), generated[:, 5:])


@pytest.mark.parametrize("temperature", [1.7, "per head"])
def test_folded_temperature_survives_saving(build, tokens, temperature, tmp_path):
    model = build()
    T = torch.linspace(0.5, 2.0, model.config.num_attention_heads) if temperature == "per head" else temperature
    attach(model, Tempered(T))
    expected = model(tokens).logits
    fold_temperature(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-5, rtol=1e-4)


def test_folding_into_cross_attention_and_bert(gpt2, tokens):
    bert = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            initializer_range=0.3,
        )
    ).eval()
    cross, encoder = gpt2(add_cross_attention=True), torch.randn(3, 7, 16)
    for model, options in ((bert, {}), (cross, {"encoder_hidden_states": encoder})):
        plain = model(tokens, **options)[0]
        attach(model, Tempered(3.0))
        expected = model(tokens, **options)[0]
        assert not torch.allclose(plain, expected, atol=1e-4)
        fold_temperature(model)
        torch.testing.assert_close(model(tokens, **options)[0], expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_folded_is_refused_before_anything_changes(tokens):
    qwen = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    t5 = T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for model, obstacle in ((qwen, "it has q_norm"), (t5, "it has relative_attention_bias")):
        with pytest.raises(ValueError, match="is not tempered"):
            fold_temperature(model)
        attach(model, Tempered(2.0))
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with pytest.raises(ValueError, match=obstacle):
            fold_temperature(model)
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        assert model.config._attn_implementation == "tempered"


@pytest.mark.parametrize("multi_query", [True, False])
def test_fused_weights_in_another_layout_than_gpt2s_are_not_folded(tokens, multi_query):
    sizes = {"vocab_size": 50, "n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 16}
    model = GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes, multi_query=multi_query, bos_token_id=0, eos_token_id=0))
    attach(model, Tempered(2.0))
    with pytest.raises(ValueError, match="no query projection was found"):
        fold_temperature(model)


@pytest.mark.parametrize("implementation", ["natural_gradient", "tempered"])
def test_missing_parameters_are_named(gpt2, tokens, implementation):
    with pytest.raises(ValueError, match=f"{implementation} attention without its parameters: ") as raised:
        gpt2(implementation)(tokens)
    named = re.search(r"(natattn\S+)\.(\w+)\(model", str(raised.value))
    assert getattr(importlib.import_module(named[1]), named[2]) is attach


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_temperatures_of_heads_follow_the_model_to_its_device(gpt2, tokens):
    logits = []
    for device in ("cpu", "cuda"):
        model = gpt2().to(device).eval()
        attach(model, Tempered(1.0))
        set_temperature(model, [1.0, 2.0])
        logits.append(model(tokens.to(device)).logits.cpu())
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-3)


def test_bad_parameters_are_refused(gpt2):
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be greater than 0"):
            NaturalGradient(bad)
        with pytest.raises(ValueError, match="must be greater than 0"):
            Tempered(bad)
    model = gpt2()
    with pytest.raises(ValueError, match="is not tempered"):
        set_temperature(model, 1.0)
    attach(model, Tempered(torch.ones(2)))
    with pytest.raises(ValueError, match="3 temperatures for 2 heads"):
        set_temperature(model, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="no attention layers"):
        attach(torch.nn.Linear(2, 2), Tempered(1.0))
