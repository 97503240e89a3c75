"""What a compiled forward pass leaves to the probe is what an eager one does, and it stays one graph."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from natattn.fisher.probe import FisherProbe
from natattn.models.implicit_masks import one_sequence_per_row

TOKENS = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_positions=12, n_embd=16, n_layer=2, n_head=2, **TOKENS)),
        ("transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_proj"),
    ),
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=12, **TOKENS)
        ),
        ("model.layers.0.mlp.up_proj",),
    ),
}  # fmt: skip
FACTORS = ("query_input", "query_output", "key_input", "key_output")


@pytest.mark.parametrize("kind", MODELS)
def test_factors_of_a_compiled_model(kind):
    build, covariances = MODELS[kind]
    torch.manual_seed(0)
    models = [build().train()]
    models.append(copy.deepcopy(models[0]))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    probes = [
        FisherProbe(model, factors=FACTORS, covariances=covariances, capture_every=2, sequences=2, capture_rows=5)
        for model in models
    ]
    for model, probe in zip(models, probes, strict=True):
        forward = torch.compile(model, backend=backend) if model is models[1] else model
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            with one_sequence_per_row(), probe.step(step):
                for _ in range(2):  # accumulation: of a step's passes the first is captured
                    tokens = torch.randint(30, (3, 12), generator=generator)
                    forward(input_ids=tokens, use_cache=False).logits.square().mean().backward()
    for graph in graphs:
        assert sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes) == 2
    states = [probe.state_dict() for probe in probes]
    assert states[0].keys() == states[1].keys()
    assert probes[0].captures == probes[1].captures == 2
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_that_fails_leaves_nothing_behind():
    build, covariances = MODELS["gpt2"]
    model = build().train()
    probe = FisherProbe(model, factors=FACTORS, covariances=covariances, capture_every=1)
    compiled = torch.compile(model, backend="eager")
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(RuntimeError, match="labels"), probe.step(0):
        raise RuntimeError(f"labels of {compiled(input_ids=tokens, use_cache=False).logits.shape}")
    assert probe.average(0, "query_input") is None
    with probe.step(1):
        pass
    assert probe.average(0, "query_input") is None
