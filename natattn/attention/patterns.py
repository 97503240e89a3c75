"""Attention patterns a = softmax(E/T): as tensors, applied to values, and how far apart two of them are."""

from collections.abc import Callable

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs


def masked_softmax(scores: Tensor) -> Tensor:
    """Return softmax over the last dimension; a row of −inf (no allowed key) gives zeros, a nan stays nan."""
    without_keys = scores.amax(-1, keepdim=True) == -torch.inf
    return torch.softmax(scores, -1).masked_fill(without_keys, 0.0)


def masked_scores(inputs: AttentionInputs, rows_R: Tensor) -> Tensor:
    """Return E/T of the given query rows, [B, H, R, S]; −inf on forbidden pairs."""
    scores = inputs.energies(rows_R)
    if isinstance(inputs.temperature, Tensor) or inputs.temperature != 1.0:  # saves a pass over the matrix at T = 1
        scores = scores / inputs.broadcast_temperature
    return scores.masked_fill(~inputs.allowed(rows_R), -torch.inf)


def row_patterns(inputs: AttentionInputs, rows_R: Tensor | None = None) -> Tensor:
    """Return a_i = softmax_j(E_ij / T) over each row's allowed keys, [B, H, R, S].

    Forbidden pairs and rows without keys are 0.

    Args:
        rows_R: int64 [R], the query rows; None for all.
    """
    rows_R = torch.arange(inputs.length, device=inputs.query.device) if rows_R is None else rows_R
    return masked_softmax(masked_scores(inputs, rows_R))


def explicit_attention(
    inputs: AttentionInputs,
    value_BGSD: Tensor,
    *,
    dropout: float = 0.0,
    softmax: Callable[[Tensor], Tensor] = masked_softmax,
) -> Tensor:
    """Compute softmax(E/T) V with the whole pattern in memory, for cases that no fused kernel supports.

    Args:
        value_BGSD: [B, G, S, value_dim].
        dropout: probability of dropping an entry of the pattern.
        softmax: function from scores, −inf if forbidden, to patterns; it may have a backward pass of its own.

    Returns: [B, H, L, value_dim] in the dtype of V; 0 for rows without any allowed key.
    """
    rows_L = torch.arange(inputs.length, device=inputs.query.device)
    # Scores and softmax in float32, as the fused kernels accumulate them.
    with torch.autocast(inputs.query.device.type, enabled=False):
        pattern = softmax(masked_scores(inputs, rows_L))
        pattern = torch.nn.functional.dropout(pattern, dropout).to(value_BGSD.dtype)
        batch, heads, length, keys = pattern.shape
        key_heads = value_BGSD.shape[1]
        grouped = pattern.reshape(batch, key_heads, (heads // key_heads) * length, keys)
        return (grouped @ value_BGSD).reshape(batch, heads, length, -1)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return H((p + q)/2) − (H(p) + H(q))/2 of rows over the last dimension, in nats, float64.

    The value is 0 for equal rows and at most log 2.
    """
    first, second = first.double(), second.double()
    entropy = torch.special.entr
    gap: Tensor = entropy((first + second) / 2).sum(-1) - (entropy(first).sum(-1) + entropy(second).sum(-1)) / 2
    return gap.clamp_min(0.0)
