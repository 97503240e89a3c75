"""Softmax attention whose queries and keys receive the natural gradient in score space."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from natattn.attention.layers import attach
from natattn.attention.patterns import explicit_attention, masked_softmax
from natattn.attention.types.base import (
    AttentionType,
    Output,
    as_output,
    attention_function,
    fused_attention,
    observed_inputs,
    parameters_of,
)


def natural_score_gradient(pattern: Tensor, pattern_gradient: Tensor, damping: float) -> Tensor:
    """Return (1+λ)(F + λI)⁻¹ g per row, for F = diag(a) − aaᵀ and g = F h the plain gradient of the scores.

    Sherman–Morrison with m = 1/(a+λ) gives (F+λI)⁻¹g = m∘g + (m∘a)·⟨m∘a, g⟩/s with s = 1 − Σ a²/(a+λ), which loses all
    digits in float32 for small λ. Two identities remove the cancellations: s = λ Σ a/(a+λ), and ⟨m∘a, g⟩ = −λ⟨m, g⟩,
    because g sums to 0. With p = a/(a+λ) what remains is

        (1+λ) p ∘ (h − ⟨p, h⟩ / Σp),

    the plain softmax gradient a∘(h − ⟨a, h⟩) with p in place of a,

    so λ → ∞ gives the plain gradient and λ → 0 gives h minus its mean over the row's support. O(keys) per row.

    Args:
        pattern: a, rows over the last dimension; 0 on masked pairs, for which the result is exactly 0.
        pattern_gradient: h = ∂loss/∂a, finite; its values on masked pairs do not matter.
        damping: λ > 0.
    """
    presence = pattern / (pattern + damping)
    total = presence.sum(-1, keepdim=True)
    mean = (presence * pattern_gradient).sum(-1, keepdim=True) / total.masked_fill(total == 0, 1.0)
    return (1 + damping) * presence * (pattern_gradient - mean)


class _NaturalGradientSoftmax(torch.autograd.Function):
    """Softmax forward, ``natural_score_gradient`` backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, damping: float) -> Tensor:
        pattern = masked_softmax(scores)
        ctx.save_for_backward(pattern)
        ctx.damping = damping
        return pattern

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (pattern,) = ctx.saved_tensors
        return natural_score_gradient(pattern, gradients[0], ctx.damping), None


def natural_gradient_softmax(scores: Tensor, damping: float) -> Tensor:
    """Return softmax(scores) over the last dimension, with the backward pass of ``natural_score_gradient``.

    Args:
        scores: −inf if masked; a row of −inf gives a row of zeros.
        damping: λ > 0; the larger, the closer to the plain gradient.
    """
    pattern: Tensor = _NaturalGradientSoftmax.apply(scores, damping)  # type: ignore[no-untyped-call]
    return pattern


@dataclass(frozen=True)
class NaturalGradient:
    """The parameter that ``attach`` sets on a layer: the damping λ > 0 of the softmax Fisher."""

    implementation: ClassVar[str] = "natural_gradient"
    damping: float

    def __post_init__(self) -> None:
        if not 0 < self.damping < math.inf:
            raise ValueError(f"damping={self.damping}: must be greater than 0 and finite")


@attention_function(NaturalGradient.implementation)
def natural_gradient_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Output:
    """Compute softmax(E) V, whose backward pass sends the damped natural gradient to Q and K and the plain one to V.

    If a gradient is needed, the pattern is held in memory, O(L²) per layer; otherwise the fused kernel runs.
    """
    softmax = partial(natural_gradient_softmax, damping=parameters_of(module, NaturalGradient).damping)
    inputs = observed_inputs(module, query, key, attention_mask, options)
    dropout = options.get("dropout", 0.0)
    # With dropout the two paths draw differently, and a checkpointed forward runs without and then with gradients.
    if inputs.softcap is None and dropout == 0.0 and not torch.is_grad_enabled():
        return fused_attention(module, inputs, value, options)
    return as_output(explicit_attention(inputs, value, dropout=dropout, softmax=softmax))


class NaturalGradientAttention(AttentionType):
    """The plain forward pass; the gradient to queries and keys is that of ``natural_score_gradient``."""

    kind: Literal["natural_gradient"]
    damping: float = Field(gt=0, le=1e30)  # above, 1 + damping leaves float32

    def apply_to(self, model: Any) -> None:
        """Choose the attention function and its damping."""
        attach(model, NaturalGradient(self.damping))
