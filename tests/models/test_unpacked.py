"""Rows of one sequence: no mask is made where causality says it all, in a compiled model either."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, masking_utils

from natattn.models.implicit_masks import one_sequence_per_row

PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, attn_implementation="sdpa")
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))


def _attention_calls(model: GPT2LMHeadModel, **inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.fx.Node]]:
    """Logits of a compiled forward pass, and its calls of PyTorch's attention."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with one_sequence_per_row(), torch.no_grad():
        logits = torch.compile(model, backend=backend)(**inputs, use_cache=False).logits
    (graph,) = graphs
    return logits, [node for node in graph.graph.nodes if "scaled_dot_product_attention" in str(node.target)]


def test_a_compiled_model_leaves_its_causal_mask_implicit(model, tokens):
    logits, calls = _attention_calls(model, input_ids=tokens)
    assert len(calls) == 2
    assert all(call.kwargs["attn_mask"] is None and call.kwargs["is_causal"] for call in calls)
    torch.testing.assert_close(logits, model(tokens).logits)


def test_padding_is_masked_as_ever(model, tokens):
    expected = model(tokens, attention_mask=PADDED).logits
    logits, calls = _attention_calls(model, input_ids=tokens, attention_mask=PADDED)
    assert all(call.kwargs["attn_mask"] is not None for call in calls)
    torch.testing.assert_close(logits[PADDED.bool()], expected[PADDED.bool()])
    with one_sequence_per_row():
        torch.testing.assert_close(model(tokens, attention_mask=PADDED).logits, expected)


def test_an_eager_model_does_not_look_for_packed_sequences(model, tokens, monkeypatch):
    def looked(position_ids: torch.Tensor) -> None:
        raise AssertionError("it looked")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", looked)
    with one_sequence_per_row():
        expected = model(tokens, use_cache=False).logits
    with pytest.raises(AssertionError, match="it looked"):
        model(tokens, use_cache=False)
    monkeypatch.undo()
    assert torch.equal(model(tokens, use_cache=False).logits, expected)


def test_transformers_is_itself_again_after_a_failure():
    before = masking_utils.find_packed_sequence_indices, masking_utils._ignore_causal_mask_sdpa
    with pytest.raises(KeyError), one_sequence_per_row():
        raise KeyError
    assert before == (masking_utils.find_packed_sequence_indices, masking_utils._ignore_causal_mask_sdpa)
