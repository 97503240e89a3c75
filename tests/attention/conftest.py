"""Small randomly initialised models."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from natattn.attention.types.registry import register


def build_gpt2(implementation: str = "sdpa", initializer_range: float = 0.3, **options) -> GPT2LMHeadModel:
    register()
    config = GPT2Config(
        vocab_size=50, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=initializer_range, **options,
    )  # fmt: skip
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


def build_llama(implementation: str = "sdpa", initializer_range: float = 0.3, **options) -> LlamaForCausalLM:
    register()
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=24, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        initializer_range=initializer_range, **options,
    )  # fmt: skip
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.fixture(params=["gpt2", "llama"])
def build(request) -> Callable:
    return {"gpt2": build_gpt2, "llama": build_llama}[request.param]


@pytest.fixture
def gpt2() -> Callable:
    return build_gpt2


@pytest.fixture
def llama() -> Callable:
    return build_llama


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(0))
