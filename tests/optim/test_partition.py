"""Roles of parameters across architectures: complete, disjoint and correct."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from natattn.optim.partition import check_partition, partition


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_positions=8, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def test_gpt2_roles(gpt2):
    views = {view.name: view for view in partition(gpt2)}
    assert views["transformer.wte.weight"].role == "embedding"
    assert views["transformer.wpe.weight"].role == "embedding"
    assert views["transformer.h.1.attn.c_attn.weight[key]"].role == "key"
    assert views["transformer.h.1.attn.c_attn.weight[key]"].layer == 1
    assert views["transformer.h.0.attn.c_proj.weight"].role == "output"
    assert views["transformer.h.0.mlp.c_proj.weight"].role == "mlp"
    assert views["transformer.h.0.ln_1.weight"].role == "vector"
    assert views["transformer.h.0.attn.c_attn.bias"].role == "vector"
    assert not any("lm_head" in name for name in views), "the tied head is the embedding"


def test_slices_of_the_fused_weight_are_shown_as_outputs_by_inputs(gpt2):
    attention = gpt2.transformer.h[0].attn
    views = {view.role: view for view in partition(gpt2) if view.name.startswith("transformer.h.0.attn.c_attn.weight")}
    inputs = torch.randn(5, 12)
    query, key, value = attention.c_attn(inputs).split(12, dim=-1)
    bias = attention.c_attn.bias.split(12)
    for index, (role, output) in enumerate([("query", query), ("key", key), ("value", value)]):
        matrix = views[role].of(attention.c_attn.weight)
        torch.testing.assert_close(inputs @ matrix.T + bias[index], output)


def test_llama_roles_with_an_untied_head():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip
    roles = {view.name: view.role for view in partition(model)}
    layer = "model.layers.0"
    assert roles[f"{layer}.self_attn.q_proj.weight"] == "query"
    assert roles[f"{layer}.self_attn.k_proj.weight"] == "key"
    assert roles[f"{layer}.self_attn.v_proj.weight"] == "value"
    assert roles[f"{layer}.self_attn.o_proj.weight"] == "output"
    assert roles[f"{layer}.mlp.gate_proj.weight"] == "mlp"
    assert roles["lm_head.weight"] == "head"


def test_frozen_parameters_are_left_out(gpt2):
    gpt2.transformer.wpe.weight.requires_grad_(False)
    assert "transformer.wpe.weight" not in {view.name for view in partition(gpt2)}


def test_a_parameter_that_is_missed_is_an_error(gpt2):
    views = partition(gpt2)
    with pytest.raises(ValueError, match=r"ln_f\.bias"):
        check_partition([view for view in views if view.name != "transformer.ln_f.bias"], gpt2)


def test_matrices_outside_blocks_are_heads_and_other_parameters_vectors():
    model = nn.Module()
    model.pooler = nn.Linear(3, 3)
    model.patches = nn.Conv2d(3, 4, 2)
    model.layers = nn.ModuleList([nn.Module()])
    model.layers[0].bias_table = nn.Parameter(torch.zeros(5, 2))
    model.layers[0].experts = nn.Parameter(torch.zeros(2, 3, 4))
    model.layers[0].up = nn.Linear(3, 4)
    roles = {view.name: view.role for view in partition(model)}
    assert roles["pooler.weight"] == "head"
    assert roles["layers.0.up.weight"] == "mlp"
    assert {name for name, role in roles.items() if role == "vector"} == {
        "pooler.bias", "patches.weight", "patches.bias", "layers.0.bias_table", "layers.0.experts", "layers.0.up.bias",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["query_key_value", "c_attn"])
def test_unknown_fused_layouts_are_errors(name):
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({name: nn.Linear(3, 9)})])
    with pytest.raises(ValueError, match="layout"):
        partition(model)


def test_cross_attention_of_gpt2_has_a_separate_query_weight():
    config = GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=20, n_positions=8, add_cross_attention=True)
    views = {view.name: view for view in partition(GPT2LMHeadModel(config))}
    block = "transformer.h.0.crossattention"
    assert views[f"{block}.q_attn.weight"].role == "query"
    shapes = {role: views[f"{block}.c_attn.weight[{role}]"].of(views[f"{block}.c_attn.weight[{role}]"].parameter).shape
              for role in ("key", "value")}  # fmt: skip
    assert shapes == {"key": (12, 12), "value": (12, 12)}
    assert f"{block}.c_attn.weight[query]" not in views
