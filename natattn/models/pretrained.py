"""Pretrained models: their configuration, their weights, and what must fit between them and a run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.models.settings import PretrainedInit, RandomInit, SizeSettings
from natattn.models.trust import check_trust
from natattn.storage.atomic import pretrained_source

SDPA = "sdpa"  # transformers' name for PyTorch's scaled_dot_product_attention


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars for loading and saving."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """Hide transformers' table of missing weights; callers raise one line instead."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_init(init: RandomInit | PretrainedInit) -> Any:
    """Return the configuration of the pretrained model, or None for random weights.

    Raises: UserError if there is no model at ``init.path``.
    """
    if isinstance(init, RandomInit):
        return None
    from transformers import AutoConfig

    try:
        source, options = pretrained_source(init.path)
        if not options:  # not a GGUF file
            check_trust(source)
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises whatever its readers do
        raise UserError(f"init.path={init.path}: no transformers model there: {first_line(error)}") from error


def check_against_pretrained(size: SizeSettings, config: Any, path: str) -> None:
    """Refuse sizes that differ from the pretrained model's.

    Raises: UserError naming the key.
    """
    names = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads"}
    for key, name in {**names, "n_inner": "n_inner"}.items():
        asked, actual = getattr(size, key), getattr(config, name, None)
        if asked is not None and asked != actual:
            raise UserError(f"size.{key}={asked}: the model at init.path={path} has {actual}; use size=pretrained")


def load_pretrained(
    loader: Any, init: PretrainedInit, dropout: float, *, seed: int = 0, replaced: tuple[str, ...] = (), **options: Any
) -> nn.Module:
    """Load a model in float32 on the CPU with plain softmax attention.

    Args:
        loader: one of transformers' Auto classes.
        dropout: probability, of every layer.
        seed: of new weights.
        replaced: prefixes of weights that may be missing or of another shape; those are initialised.
        options: further ones of ``from_pretrained``.

    Raises: UserError if the weights cannot be read or some are missing.
    """
    try:
        source, gguf = pretrained_source(init.path)
        with without_progress_bars(), without_reports(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, report = loader.from_pretrained(
                source,
                **gguf,
                **options,
                attn_implementation=SDPA,
                dtype=torch.float32,
                use_safetensors=None if gguf else True,
                trust_remote_code=False,
                ignore_mismatched_sizes=bool(replaced),
                output_loading_info=True,
            )
    except Exception as error:  # a damaged file raises whatever its reader does
        raise UserError(f"init.path={init.path}: cannot be loaded: {first_line(error)}") from error
    forget_quantization(model)
    names = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    missing = sorted(name for name in names if not name.startswith(replaced))
    if missing:
        raise UserError(
            f"init.path={init.path}: {len(missing)} weights are missing or do not fit, {missing[0]} among them"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # GPT-2
            module.p = dropout
        elif isinstance(getattr(module, "attention_dropout", None), float):  # Llama and later
            module.attention_dropout = dropout
    loaded: nn.Module = model
    return loaded


def forget_quantization(model: Any) -> None:
    """Make a model that was read from a GGUF file savable: its weights are plain tensors, but its configuration is not.

    transformers still marks such a model as quantized.
    """
    if getattr(getattr(model, "hf_quantizer", None), "quantization_config", None) is None:
        return
    if getattr(model.hf_quantizer.quantization_config, "quant_method", None) == "gguf":
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
