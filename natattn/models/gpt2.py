"""Sizes, attention types and initialisations → transformers models.

The natural model is the same GPT-2 (same parameters, initialisation, checkpoints and generation): only the name of its
attention function differs.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from natattn.config.base import Name, Positive, Settings
from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.models.attention_types import AttentionSettings, PublishedAttention, SoftmaxAttention
from natattn.models.foreign import check_foreign
from natattn.storage.atomic import pretrained_source

SDPA = "sdpa"  # PyTorch's scaled_dot_product_attention, as transformers names it


class SizeSettings(Settings):
    """Width, depth and context of a model; ``None`` takes the pretrained model's own."""

    name: Name
    n_layer: Annotated[int, Field(ge=1, le=10_000)] | None
    n_embd: Annotated[int, Field(ge=1, le=2**20)] | None
    n_head: Annotated[int, Field(ge=1, le=2**20)] | None
    context: Annotated[int, Field(ge=2, le=2**24)] | None
    n_inner: Annotated[int, Field(ge=1, le=2**24)] | None = None  # hidden units of the MLP; None: four times n_embd
    initializer_range: Positive | None  # standard deviation of the initial weights


class ModelSettings(Settings):
    """An attention type: how attention is computed, and whether it can be observed."""

    name: Name
    dropout: float = Field(ge=0, lt=1)
    attention: AttentionSettings

    @property
    def label_shift(self) -> int:
        """Tokens between an input's place and its label's; more than one only to repeat the published mistake."""
        return self.attention.label_shift if isinstance(self.attention, PublishedAttention) else 1

    @property
    def observable(self) -> bool:
        """Whether a probe may observe this model's attention during training."""
        return not isinstance(self.attention, SoftmaxAttention)


class RandomInit(Settings):
    """GPT-2's random initialisation, from the run's seed."""

    kind: Literal["random"]


class PretrainedInit(Settings):
    """The weights of a transformers folder or hub name."""

    kind: Literal["pretrained"]
    path: str


InitSettings = Annotated[RandomInit | PretrainedInit, Field(discriminator="kind")]


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers' progress bars for loading and saving out of our own output."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def check_init(init: RandomInit | PretrainedInit) -> Any:
    """The configuration of the pretrained model, or None.

    Raises: UserError where there is no model at ``init.path``.
    """
    if isinstance(init, RandomInit):
        return None
    from transformers import AutoConfig

    try:
        source, options = pretrained_source(init.path)
        if not options:  # what is no GGUF file
            check_foreign(source)
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises whatever its readers do
        raise UserError(f"init.path={init.path}: no transformers model there: {first_line(error)}") from error


def check_size(size: SizeSettings, init: RandomInit | PretrainedInit) -> None:
    """Refuse sizes that no model can have, before anything is built.

    Raises: UserError naming the key.
    """
    if isinstance(init, RandomInit):
        _check_memory(whole_size(size))


def _check_memory(sizes: dict[str, Any]) -> None:
    """Raises: UserError for weights that this machine cannot hold once, whatever else it would have to hold."""
    width = sizes["n_embd"]
    inner = sizes["n_inner"] or 4 * width
    weights = sizes["n_layer"] * (4 * width**2 + 2 * width * inner) + width * (sizes["context"] or 0)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * weights > memory:
        raise UserError(
            f"size: n_layer={sizes['n_layer']} n_embd={width} n_inner={inner} context={sizes['context']}: the weights "
            f"of one model are {4 * weights / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f} GiB; "
            "valid: smaller ones"
        )


def whole_size(size: SizeSettings) -> dict[str, Any]:
    """The sizes of a model that is built anew, none of them left open but ``n_inner`` and ``context``.

    Raises: UserError naming the key that has no value, or a number of heads that does not divide the width.
    """
    values = size.model_dump(exclude={"name"})
    for key, value in values.items():
        if value is None and key not in ("n_inner", "context"):
            raise UserError(f"size.{key}: no value; size={size.name} is for init=pretrained, choose another size")
    n_embd, n_head = values["n_embd"], values["n_head"]
    if n_embd % n_head:
        raise UserError(
            f"size.n_head={n_head}: does not divide size.n_embd={n_embd}; "
            f"valid: a divisor, such as {nearest_divisor(n_embd, n_head)}"
        )
    return values


def build_model(
    model: ModelSettings,
    size: SizeSettings,
    init: RandomInit | PretrainedInit,
    *,
    vocab_size: int,
    end_token_id: int,
    seed: int,
) -> nn.Module:
    """Build one arm's causal language model in float32 on the CPU, with plain softmax attention.

    The same (size, init, vocab_size, seed) gives the same weights; ``model.attention.put_on`` then chooses the type.

    Raises: UserError when the sizes, the vocabulary or the pretrained folder do not fit together.
    """
    check_size(size, init)
    if isinstance(model.attention, PublishedAttention):
        if isinstance(init, PretrainedInit):
            raise UserError(f"model={model.name}: has weights of its own kind; valid: init=random")
        from natattn.published.model import build_published

        return build_published(
            **whole_size(size),
            vocab_size=vocab_size,
            end_token_id=end_token_id,
            causal=model.attention.causal,
            seed=seed,
            embedding_dropout=model.dropout,
        )
    if isinstance(init, PretrainedInit):
        return _load_pretrained(model, size, init, vocab_size)
    return _random_gpt2(model, size, vocab_size=vocab_size, end_token_id=end_token_id, seed=seed)


def context_of(size: SizeSettings, init: RandomInit | PretrainedInit) -> int:
    """Tokens of context that a run trains with: ``size.context``, else all that the model has positions for.

    Raises: UserError where a pretrained model has another size or fewer positions, or states none and
        ``size.context`` is not given.
    """
    found = check_init(init)
    if isinstance(init, PretrainedInit):
        check_against_pretrained(size, found, init.path)
    positions = size.context if found is None else getattr(found, "max_position_embeddings", None)
    if size.context is None:
        if positions is None:
            raise UserError("size.context: no value; give size.context=N, the longest context in tokens")
        return int(positions)
    if positions is not None and size.context > positions:
        raise UserError(f"size.context={size.context}: the pretrained model has {positions} positions")
    return size.context


def _random_gpt2(
    model: ModelSettings, size: SizeSettings, *, vocab_size: int, end_token_id: int, seed: int
) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = whole_size(size)
    config = GPT2Config(
        n_positions=sizes.pop("context"),
        vocab_size=vocab_size,
        **sizes,
        # The tanh form of GELU that GPT-2 calls gelu_new, as one fused kernel.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        bos_token_id=end_token_id,
        eos_token_id=end_token_id,
        use_cache=True,
    )
    config._attn_implementation = SDPA
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def _load_pretrained(model: ModelSettings, size: SizeSettings, init: PretrainedInit, vocab_size: int) -> nn.Module:
    import transformers

    found = check_init(init)
    if vocab_size > found.vocab_size:
        raise UserError(
            f"tokenizer: has {vocab_size} tokens, the model at init.path={init.path} only {found.vocab_size}"
        )
    auto: Any = transformers.AutoModelForCausalLM
    try:
        with without_progress_bars(), without_reports():
            source, options = pretrained_source(init.path)
            loaded, report = auto.from_pretrained(
                source,
                **options,
                attn_implementation=SDPA,
                dtype=torch.float32,
                use_safetensors=None if options else True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # a damaged file raises whatever its reader does
        raise UserError(f"init.path={init.path}: cannot be loaded: {first_line(error)}") from error
    forget_quantization(loaded)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"init.path={init.path}: {len(missing)} weights are missing, {missing[0]} among them")
    set_dropout(loaded, model.dropout)
    built: nn.Module = loaded
    return built


def forget_quantization(model: Any) -> None:
    """Let a model that was read from a GGUF file be saved: its weights are plain tensors, but it says otherwise."""
    if getattr(getattr(model, "hf_quantizer", None), "quantization_config", None) is None:
        return
    if getattr(model.hf_quantizer.quantization_config, "quant_method", None) == "gguf":
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """Keep transformers' table of missing weights back: the one line that we raise says it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_against_pretrained(size: SizeSettings, config: Any, path: str) -> None:
    """Refuse sizes that are not the pretrained model's.

    Raises: UserError naming the key.
    """
    names = {
        "n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads", "n_inner": "n_inner",
    }  # fmt: skip
    for key, name in names.items():
        asked, actual = getattr(size, key), getattr(config, name, None)
        if asked is not None and asked != actual:
            raise UserError(f"size.{key}={asked}: the model at init.path={path} has {actual}; use size=pretrained")


def set_dropout(model: nn.Module, probability: float) -> None:
    """Dropout of every layer: as modules (GPT-2) or as a number on the attention layer (Llama and later)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability  # type: ignore[assignment]


def nearest_divisor(width: int, heads: int) -> int:
    """The divisor of ``width`` that is nearest to ``heads``."""
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: (abs(d - heads), d))
