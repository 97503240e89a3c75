"""docs/architectures.md, row by row: what it says of an architecture is what a small random model of it does."""

import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from natattn.attention.layers import attach, attention_layers
from natattn.attention.probe import AttentionProbe
from natattn.attention.types.natural_gradient import NaturalGradient
from natattn.attention.types.tempered import Tempered, fold_temperature

TABLE = Path(__file__).parents[2] / "docs" / "attention.md"
ROWS = re.findall(r"^\| (\w+) \| (yes|no) \| (yes|no) \| (.+) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
OBSERVED = [name for name, observed, _, _ in ROWS if observed == "yes"]
REFUSED = [name for name, observed, _, _ in ROWS if observed == "no"]

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = {
    **SIZES,
    "vocab_size": 30,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
SEQ2SEQ = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
OPTIONS = {
    "GPT2LMHeadModel": {
        "n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 30, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "GPTNeoXForCausalLM": TEXT,
    "OPTForCausalLM": {**TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": {**GROUPED, "sliding_window": 4},
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 4},
    "Gemma2ForCausalLM": {
        **GROUPED, "head_dim": 4, "sliding_window": 4, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 4,
    },
    "BertModel": TEXT,
    "DistilBertModel": {
        "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "vocab_size": 30, "max_position_embeddings": 32,
    },
    "ViTModel": {**SIZES, "image_size": 8, "patch_size": 2},
    "T5Model": {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 30},
    "BartModel": {**SEQ2SEQ, "max_position_embeddings": 32},
    "WhisperModel": {**SEQ2SEQ, "max_source_positions": 10, "max_target_positions": 32, "num_mel_bins": 8},
    "GptOssForCausalLM": {**GROUPED, "head_dim": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
    "FalconForCausalLM": TEXT,
    "GPTJForCausalLM": {"n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "vocab_size": 30, "n_positions": 32},
    "BloomForCausalLM": {"hidden_size": 16, "n_layer": 1, "n_head": 4, "vocab_size": 30},
    "DebertaV2Model": TEXT,
    "MambaForCausalLM": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 30, "state_size": 4},
}  # fmt: skip


def _build(name: str):
    model_class = getattr(transformers, name)
    config = model_class.config_class(**OPTIONS[name])
    config.initializer_range = config.initializer_factor = 0.4
    config.init_std = 0.4
    torch.manual_seed(0)
    return model_class(config).eval()


def _arguments(name: str, *, padded: bool) -> dict:
    generator = torch.Generator().manual_seed(1)
    if name == "ViTModel":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    tokens = torch.randint(3, 30, (2, 9), generator=generator)
    if name == "WhisperModel":
        return {"input_features": torch.randn(2, 8, 20, generator=generator), "decoder_input_ids": tokens}
    arguments = {"input_ids": tokens}
    if padded:
        arguments["attention_mask"] = torch.ones_like(tokens)
        arguments["attention_mask"][1, :3] = 0
    if name in ("T5Model", "BartModel"):
        arguments["decoder_input_ids"] = tokens[:, :6].flip(0)
    return arguments


def _output(model, arguments: dict) -> torch.Tensor:
    """The first output, at the positions that are not padding."""
    options = {"use_cache": False} if "input_ids" in arguments else {}
    output = model(**arguments, **options)[0]
    mask = arguments.get("attention_mask")
    return output if mask is None or "decoder_input_ids" in arguments else output[mask.bool()]


def _capture(model, arguments: dict) -> dict:
    """Per attention module, what its own eager attention was called with, and the weights that it returned."""
    captured: dict = {}

    def eager(module, query, key, value, attention_mask, **kwargs):
        own = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = own(module, query, key, value, attention_mask, **kwargs)
        captured[module] = (query, key, attention_mask, kwargs, weights)
        return output, weights

    AttentionInterface.register("captured_eager", eager)
    AttentionMaskInterface.register("captured_eager", eager_mask)
    model.set_attn_implementation("captured_eager")
    _output(model, arguments)
    return captured


def _expected(query, key, mask, kwargs, weights, *, is_cross_attention) -> dict[str, torch.Tensor]:
    """Statistics from what the model's own attention saw; a padded token neither asks nor is asked."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scaling = kwargs.get("scaling")
    energy = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if kwargs.get("softcap") is not None:
        energy = torch.tanh(energy / kwargs["softcap"]) * kwargs["softcap"]
    if kwargs.get("position_bias") is not None:
        energy = energy + kwargs["position_bias"]
    allowed = torch.ones_like(energy).bool() if mask is None else (mask > -1e8).expand_as(energy)
    if not is_cross_attention:
        allowed = allowed & allowed.diagonal(dim1=-2, dim2=-1)[..., None]
    # A row without any key: eager attention spreads its weights over forbidden keys.
    present = allowed.any(-1)
    entropy = torch.special.entr(weights * allowed).sum(-1)
    return {
        "mean_absolute_energy": (energy.abs() * allowed).sum((0, 2, 3)) / allowed.sum((0, 2, 3)),
        "maximum": energy.masked_fill(~allowed, -torch.inf).amax((0, 2, 3)),
        "entropy": (entropy * present).sum((0, 2)) / present.sum((0, 2)),
        "participation": ((weights * allowed) ** 2).sum((0, 2, 3)) / present.sum((0, 2)),
    }


def test_the_table_and_the_models_of_this_file_are_the_same():
    assert [name for name, *_ in ROWS] == list(OPTIONS)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", OBSERVED)
def test_outputs_and_statistics_are_those_of_the_models_own_attention(name, padded):
    _check_observed(name, padded=padded)


def _check_observed(name, *, padded):
    model, arguments = _build(name), _arguments(name, padded=padded)
    own_implementation = model.config._attn_implementation
    with torch.no_grad():
        own = _output(model, arguments)
        quantities = ("mean_absolute_energy", "maximum", "entropy", "participation")
        with AttentionProbe(model, quantities=quantities, row_count=None, cross_attention=True) as probe:
            with probe.step(0):
                torch.testing.assert_close(_output(model, arguments), own, atol=2e-5, rtol=1e-4)
            attach(model, NaturalGradient(0.1))
            torch.testing.assert_close(_output(model, arguments), own, atol=2e-5, rtol=1e-4)
        assert model.config._attn_implementation == own_implementation
        captured = _capture(model, arguments)
    assert len(probe.sites) == len(captured) == len(attention_layers(model, cross_attention=True))
    for site in probe.sites:
        seen = captured[model.get_submodule(site.name)]
        for quantity, expected in _expected(*seen, is_cross_attention=site.is_cross_attention).items():
            actual = site.recorded()[quantity]
            assert torch.allclose(actual, expected, atol=2e-5, rtol=1e-4), (site.name, quantity, actual, expected)


@pytest.mark.parametrize("name", OBSERVED)
def test_gradients_are_finite_with_padded_rows(name):
    model, arguments = _build(name), _arguments(name, padded=True)
    attach(model, NaturalGradient(1e-3))
    _output(model, arguments).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "export"), [(name, export) for name, observed, export, _ in ROWS if observed == "yes"]
)
def test_export_of_a_temperature(name, export):
    model, arguments = _build(name), _arguments(name, padded=True)
    with torch.no_grad():
        plain = _output(model, arguments)
        attach(model, Tempered(2.5))
        tempered = _output(model, arguments)
        assert not torch.allclose(plain, tempered, atol=1e-3)
        if export == "no":
            with pytest.raises(ValueError, match="cannot be folded"):
                fold_temperature(model)
        else:
            fold_temperature(model)
            torch.testing.assert_close(_output(model, arguments), tempered, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_says_so(name):
    if _dispatches(name):  # in a newer transformers than the table's: then what is observed must be right
        _check_observed(name, padded=False)
        _check_observed(name, padded=True)
        return
    model, arguments = _build(name), _arguments(name, padded=False)
    with pytest.raises((ValueError, NotImplementedError), match=r"attention layers|by name|sinks"):  # noqa: SIM117
        with AttentionProbe(model) as probe, probe.step(0):
            _output(model, arguments)


def _dispatches(name) -> bool:
    """Whether the model takes attention by name, without anything that this package refuses."""
    source = Path(sys.modules[getattr(transformers, name).__module__].__file__).read_text(encoding="utf-8")
    return "ALL_ATTENTION_FUNCTIONS" in source and "s_aux" not in source
