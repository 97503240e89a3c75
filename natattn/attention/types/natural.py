"""Softmax attention that a probe can observe."""

from typing import Any, Literal

from torch import Tensor, nn

from natattn.attention.layers import use_implementation
from natattn.attention.patterns import explicit_attention
from natattn.attention.types.base import (
    AttentionType,
    Output,
    as_output,
    attention_function,
    fused_attention,
    observed_inputs,
)

NATURAL = "natural"


@attention_function(NATURAL)
def natural_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Output:
    """Compute softmax(E) V; a recording site of a probe on this module observes E."""
    inputs = observed_inputs(module, query, key, attention_mask, options)
    if inputs.softcap is not None:  # no fused kernel of PyTorch supports it
        return as_output(explicit_attention(inputs, value, dropout=options.get("dropout", 0.0)))
    return fused_attention(module, inputs, value, options)


class NaturalAttention(AttentionType):
    """The function and weights of plain softmax attention, observable by a probe."""

    kind: Literal["natural"]

    def apply_to(self, model: Any) -> None:
        """Choose the attention function by name."""
        use_implementation(model, NATURAL)
