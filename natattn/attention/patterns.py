"""The patterns of attention, and how far apart two of them are."""

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.softmax import masked_scores, masked_softmax


def row_patterns(inputs: AttentionInputs, rows_R: Tensor | None = None) -> Tensor:
    """a_i = softmax_j(E_ij / T) over each row's allowed keys, [B, H, R, S]; 0 where forbidden and in rows without keys.

    Args:
        rows_R: int64 [R], the query rows; None for all.
    """
    rows_R = torch.arange(inputs.length, device=inputs.query.device) if rows_R is None else rows_R
    return masked_softmax(masked_scores(inputs, rows_R))


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """H((p + q)/2) − (H(p) + H(q))/2 of rows over the last dimension, in nats, float64: 0 if equal, at most log 2."""
    first, second = first.double(), second.double()
    entropy = torch.special.entr
    gap: Tensor = entropy((first + second) / 2).sum(-1) - (entropy(first).sum(-1) + entropy(second).sum(-1)) / 2
    return gap.clamp_min(0.0)
