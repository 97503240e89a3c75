"""Softmax whose backward is the natural gradient in score space, and attention written out over it."""

from typing import Any

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs


def masked_softmax(scores: Tensor) -> Tensor:
    """softmax over the last dimension; a row of −inf, which has no allowed key, gives zeros. A nan stays one."""
    without_keys = scores.amax(-1, keepdim=True) == -torch.inf
    return torch.softmax(scores, -1).masked_fill(without_keys, 0.0)


def masked_scores(inputs: AttentionInputs, rows_R: Tensor) -> Tensor:
    """E/T of the given query rows, [B, H, R, S]; −inf on forbidden pairs."""
    scores = inputs.energies(rows_R)
    if isinstance(inputs.temperature, Tensor) or inputs.temperature != 1.0:  # else a pass over the matrix for nothing
        scores = scores / inputs.broadcast_temperature
    return scores.masked_fill(~inputs.allowed(rows_R), -torch.inf)


def natural_score_gradient(pattern: Tensor, pattern_gradient: Tensor, damping: float) -> Tensor:
    """(1+λ)(F + λI)⁻¹ g per row, for F = diag(a) − aaᵀ and g = F h the plain gradient of the scores.

    Sherman–Morrison with m = 1/(a+λ) gives (F+λI)⁻¹g = m∘g + (m∘a)·⟨m∘a, g⟩/s with s = 1 − Σ a²/(a+λ), which loses all
    digits in float32 for small λ. Two identities remove the cancellations: s = λ Σ a/(a+λ), and ⟨m∘a, g⟩ = −λ⟨m, g⟩,
    because g sums to 0. With p = a/(a+λ) what remains is

        (1+λ) p ∘ (h − ⟨p, h⟩ / Σp),

    the plain softmax gradient a∘(h − ⟨a, h⟩) with p in place of a,

    so λ → ∞ gives the plain gradient and λ → 0 gives h minus its mean over the row's support. O(keys) per row.

    Args:
        pattern: a, rows over the last dimension; 0 on masked pairs, where the result is exactly 0.
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
    """softmax(scores) over the last dimension, with the backward of ``natural_score_gradient``.

    Args:
        scores: −inf where masked; a row of −inf gives a row of zeros.
        damping: λ > 0; the larger, the closer to the plain gradient.
    """
    pattern: Tensor = _NaturalGradientSoftmax.apply(scores, damping)  # type: ignore[no-untyped-call]
    return pattern


def explicit_attention(
    inputs: AttentionInputs, value_BGSD: Tensor, *, dropout: float = 0.0, damping: float | None = None
) -> Tensor:
    """softmax(E/T) V with the whole pattern in memory, for what no fused kernel computes.

    Args:
        value_BGSD: [B, G, S, value_dim].
        dropout: probability with which entries of the pattern are dropped.
        damping: None for the plain gradient, else λ of ``natural_gradient_softmax``; V gets the plain one always.

    Returns: [B, H, L, value_dim] in the dtype of V; 0 for rows without any allowed key.
    """
    query_BHLD = inputs.query
    rows_L = torch.arange(inputs.length, device=query_BHLD.device)
    # Scores and softmax in float32, as the fused kernels accumulate them.
    with torch.autocast(query_BHLD.device.type, enabled=False):
        scores = masked_scores(inputs, rows_L)
        pattern = masked_softmax(scores) if damping is None else natural_gradient_softmax(scores, damping)
        pattern = torch.nn.functional.dropout(pattern, dropout).to(value_BGSD.dtype)
        batch, heads, length, keys = pattern.shape
        key_heads = value_BGSD.shape[1]
        grouped = pattern.reshape(batch, key_heads, (heads // key_heads) * length, keys)
        return (grouped @ value_BGSD).reshape(batch, heads, length, -1)
