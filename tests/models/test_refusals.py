"""What no model can be made of is said in one line that names the key."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from natattn.attention.types.softmax import SoftmaxAttention
from natattn.errors import UserError
from natattn.models.gpt2 import build_model, context_of
from natattn.models.settings import ModelSettings, PretrainedInit, SizeSettings
from natattn.models.vit import build_vit
from natattn.published.attention_type import PublishedAttention

SIZES = ("n_layer", "n_embd", "n_head", "context", "initializer_range")
PRETRAINED = SizeSettings(name="pretrained", **dict.fromkeys(SIZES))
STANDARD = ModelSettings(name="standard", dropout=0.0, attention=SoftmaxAttention(kind="softmax"))


def init(folder) -> PretrainedInit:
    return PretrainedInit(kind="pretrained", path=str(folder))


def language_model(folder, *, model=STANDARD, vocab_size=30):
    return build_model(model, PRETRAINED, init(folder), vocab_size=vocab_size, end_token_id=0, seed=0)


def classifier(folder, *, channels=1):
    options = {"image_size": 8, "patch_size": 4, "classes": ("a", "b"), "seed": 0}
    return build_vit(STANDARD, PRETRAINED, init(folder), channels=channels, **options)


def saved(folder, kind):
    torch.manual_seed(0)
    if kind is language_model:
        model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=30))
    else:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=2, **sizes))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", [language_model, classifier])
def test_a_pretrained_model_is_read_whole_or_not_at_all(kind, tmp_path):
    model = saved(tmp_path, kind)
    weights = tmp_path / "model.safetensors"
    built = kind(tmp_path).state_dict()
    assert all(
        torch.equal(built[name], value) for name, value in model.state_dict().items() if "classifier" not in name
    )
    tensors = load_file(weights)
    lacking = next(name for name in sorted(tensors) if name.endswith(("ln_1.weight", "layernorm_before.weight")))
    layer = lacking.split(".")[-2]  # transformers may name what is above it otherwise
    save_file({name: value for name, value in tensors.items() if name != lacking}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=rf"init\.path=.*: 1 weights are missing.*\.{layer}\.weight among them"):
        kind(tmp_path)
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match=r"init\.path=.*: cannot be loaded: ") as caught:
        kind(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_language_model_must_know_every_token_and_place(tmp_path):
    saved(tmp_path, language_model)
    with pytest.raises(UserError, match=r"tokenizer: has 31 tokens, the model at init\.path=.* only 30"):
        language_model(tmp_path, vocab_size=31)
    assert context_of(PRETRAINED, init(tmp_path)) == 16
    assert context_of(PRETRAINED.model_copy(update={"context": 9}), init(tmp_path)) == 9
    with pytest.raises(UserError, match=r"size\.context=17: the pretrained model has 16 positions"):
        context_of(PRETRAINED.model_copy(update={"context": 17}), init(tmp_path))


def test_a_model_that_states_no_context_is_given_one(tmp_path):
    BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=30)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"size\.context: no value; give size\.context=N"):
        context_of(PRETRAINED, init(tmp_path))
    assert context_of(PRETRAINED.model_copy(update={"context": 40}), init(tmp_path)) == 40


def test_the_published_model_has_no_pretrained_weights(tmp_path):
    saved(tmp_path, language_model)
    attention = PublishedAttention(kind="published", causal=True, masked_energies_saturate=False, label_shift=1)
    published = STANDARD.model_copy(update={"name": "published", "attention": attention})
    with pytest.raises(UserError, match="model=published: has weights of its own kind; valid: init=random"):
        language_model(tmp_path, model=published)


def test_a_classifier_must_read_as_many_channels(tmp_path):
    saved(tmp_path, classifier)
    with pytest.raises(UserError, match=r"data: 3 channels, the model at init\.path=.* reads 1; valid: images of 1 ch"):
        classifier(tmp_path, channels=3)
