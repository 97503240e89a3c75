"""Causal language models: a GPT-2 with random weights, or any pretrained one.

The natural model is the same GPT-2 (same parameters, initialisation, checkpoints and generation): only the name of its
attention function differs.
"""

import torch
from torch import nn

from natattn.errors import UserError
from natattn.models.pretrained import SDPA, check_against_pretrained, check_init, load_pretrained
from natattn.models.settings import ModelSettings, PretrainedInit, RandomInit, SizeSettings, check_size


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

    The same (size, init, vocab_size, seed) gives the same weights; ``model.attention.apply_to`` then sets the type.

    Raises: UserError if the sizes, the vocabulary or the pretrained folder do not fit together.
    """
    check_size(size, init)
    if model.attention.own_architecture:
        if isinstance(init, PretrainedInit):
            raise UserError(f"model={model.name}: has weights of its own kind; valid: init=random")
        return model.attention.build_model(
            size.resolved(), vocab_size=vocab_size, end_token_id=end_token_id, dropout=model.dropout, seed=seed
        )
    if isinstance(init, PretrainedInit):
        config = check_init(init)
        if vocab_size > config.vocab_size:
            raise UserError(
                f"tokenizer: has {vocab_size} tokens, the model at init.path={init.path} only {config.vocab_size}"
            )
        from transformers import AutoModelForCausalLM

        return load_pretrained(AutoModelForCausalLM, init, model.dropout)
    return _random_gpt2(model, size, vocab_size=vocab_size, end_token_id=end_token_id, seed=seed)


def context_of(size: SizeSettings, init: RandomInit | PretrainedInit) -> int:
    """Return the context of a run in tokens: ``size.context``, or else every position that the model has.

    Raises: UserError if a pretrained model has another size or fewer positions, or states none and ``size.context`` is
        not given.
    """
    config = check_init(init)
    if isinstance(init, PretrainedInit):
        check_against_pretrained(size, config, init.path)
    positions = size.context if config is None else getattr(config, "max_position_embeddings", None)
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

    sizes = size.resolved()
    config = GPT2Config(
        n_positions=sizes.pop("context"),
        vocab_size=vocab_size,
        **sizes,
        # The tanh form of GELU, which GPT-2 calls gelu_new, as one fused kernel.
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
