"""The paper's attention and blocks in little, and its attention written out as the definition reads."""

import math

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.published.attention import GPT2NaturalAttentionBlock, NaturalAttention

HEADS, HEAD_DIM, WIDTH, LAYERS, LENGTH = 2, 4, 8, 2, 7
STATES = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(30, (3, LENGTH), generator=torch.Generator().manual_seed(2))
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
PADDING = torch.ones(3, LENGTH, dtype=torch.long)
PADDING[0, :2], PADDING[1, 5:] = 0, 0  # on the left, so that some rows have no key at all, and on the right


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


def dense(attention: NaturalAttention, states: torch.Tensor, allowed: torch.Tensor):
    """(output, weights, energies), written out as the definition reads; rows without a key give 0."""

    def split(projection):
        return projection(states).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

    query, key, value = split(attention.q_proj), split(attention.k_proj), split(attention.v_proj)
    energies = query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM)
    weights = torch.softmax(energies.masked_fill(~allowed, -torch.inf), -1).nan_to_num()
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights, energies
