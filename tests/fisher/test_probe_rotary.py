"""The rotary embedding that a FisherProbe finds is that of the model, in either convention."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GlmConfig, LlamaConfig, Qwen3Config

from natattn.fisher import probe as fisher_probe
from natattn.fisher.probe import FisherProbe

SIZES = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
CONVENTION = {
    "llama": (LlamaConfig, False),
    "qwen3": (Qwen3Config, False),
    "cohere": (CohereConfig, True),
    "glm": (GlmConfig, True),
}


@pytest.mark.parametrize("name", CONVENTION)
def test_the_convention_is_found(name, monkeypatch):
    config_class, interleaved = CONVENTION[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**SIZES)).train()
    seen = []
    true = fisher_probe.kronecker_factors

    def watched(inputs, query_input, rows, *, rotary, **options):
        seen.append((inputs, query_input, rotary))
        return true(inputs, query_input, rows, rotary=rotary, **options)

    monkeypatch.setattr(fisher_probe, "kronecker_factors", watched)
    tokens = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    with FisherProbe(model, factors=("query_output",), sequences=2) as probe, probe.step(0):
        model(input_ids=tokens, use_cache=False)
    assert len(seen) == 2
    for layer, (inputs, query_input, rotary) in enumerate(seen):
        assert rotary.interleaved == interleaved
        attention = model.model.layers[layer].self_attn
        query = attention.q_proj(query_input).view(2, 12, 2, 8)
        if hasattr(attention, "q_norm"):
            query = attention.q_norm(query)
        torch.testing.assert_close(rotary.rotate(query.transpose(1, 2)), inputs.query, rtol=1e-4, atol=1e-5)
