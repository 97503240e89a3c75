"""A small model without dropout, and a loss that it can learn."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

TOKENS = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}


def gpt2(**changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**TOKENS, **sizes, **dropout, **changes))


def loss_of(model, step: int) -> torch.Tensor:
    """Each token is one more than the token before."""
    tokens = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(step))
    tokens[:, 1:] = (tokens[:, :1] + torch.arange(1, 12)) % 30
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss
