"""Energies of attention and their statistics: pure functions of queries and keys.

The energy of a pair is the score that enters the softmax before masking, E_ij = scaling · q_i·k_j. It is defined on
allowed pairs only: a masked or padded pair enters no statistic.

Shape suffixes: B batch, H query heads, G key heads (H is a multiple of G), L queries, S keys, R sampled query rows,
D head_dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Additive masks forbid with −inf, the dtype's minimum or −1e9; no position bias comes near that.
FORBIDDEN_BELOW = -1e8


class EnergySums(NamedTuple):
    """Sums from which the means over pairs and rows are made; they add up over micro-batches and ranks.

    Every field is float32. ``pairs`` and ``rows`` are scalars that count allowed pairs and rows that have one; the
    other fields have shape [H] and hold, per head, the (estimated) sum over all pairs or rows of the batch.
    """

    pairs: Tensor
    rows: Tensor
    energy: Tensor
    absolute_energy: Tensor
    entropy: Tensor | None

    def __add__(self, other: tuple[object, ...]) -> "EnergySums":
        """The sums over both batches together (not tuple concatenation)."""
        if not isinstance(other, EnergySums):
            return NotImplemented
        return EnergySums(
            pairs=self.pairs + other.pairs,
            rows=self.rows + other.rows,
            energy=self.energy + other.energy,
            absolute_energy=self.absolute_energy + other.absolute_energy,
            entropy=None if self.entropy is None or other.entropy is None else self.entropy + other.entropy,
        )

    @property
    def mean_energy(self) -> Tensor:
        """Mean of E over allowed pairs, shape [H]."""
        return self.energy / self.pairs

    @property
    def mean_absolute_energy(self) -> Tensor:
        """Mean of |E| over allowed pairs, shape [H]."""
        return self.absolute_energy / self.pairs

    @property
    def mean_entropy(self) -> Tensor | None:
        """Mean over query rows of S_i = −Σ_j a_ij log a_ij, in nats, shape [H]; None where it was not asked for."""
        return None if self.entropy is None else self.entropy / self.rows


def systematic_rows(length: int, count: int, offset: float, device: torch.device) -> Tensor:
    """Choose ``count`` of ``length`` rows, one from each of ``count`` equal strata: ⌊(k + offset)·length/count⌋.

    With offset uniform on [0, 1) every row is included with probability count/length, so that sums weighted by
    length/count are unbiased (Horvitz and Thompson 1952; systematic sampling, Madow 1949), and the strata keep the
    variance low where a statistic depends on the position.

    Returns: int64 [count], increasing and distinct for count <= length.
    """
    positions = (torch.arange(count, device=device, dtype=torch.float64) + offset) * (length / count)
    return positions.long().clamp_(max=length - 1)


def allowed_pairs(
    attention_mask: Tensor | None, rows_R: Tensor, query_length: int, key_length: int, is_causal: bool
) -> Tensor:
    """Which keys the given query rows may attend to.

    Args:
        attention_mask: None, or a mask broadcastable to [B, H, L, S]: boolean (True is allowed) or additive (a value at
            or below half the dtype's minimum is not allowed).
        rows_R: int64 [R], indices of query rows.
        is_causal: applied when there is no mask, aligned at the upper left as in scaled_dot_product_attention.

    Returns: bool [B or 1, H or 1, R, S].
    """
    if attention_mask is None:
        keys_S = torch.arange(key_length, device=rows_R.device)
        if is_causal and query_length > 1:
            return (keys_S <= rows_R[:, None])[None, None]
        return torch.ones((1, 1, rows_R.shape[0], key_length), dtype=torch.bool, device=rows_R.device)
    mask = attention_mask[:, :, rows_R] if attention_mask.shape[2] == query_length else attention_mask
    mask = mask[..., :key_length]
    if mask.dtype != torch.bool:
        mask = mask > max(torch.finfo(mask.dtype).min / 2, FORBIDDEN_BELOW)
    return mask.expand(-1, -1, rows_R.shape[0], -1)


def row_energies(query_BHLD: Tensor, key_BGSD: Tensor, rows_R: Tensor, scaling: float) -> Tensor:
    """E_ij = scaling · q_i·k_j for the given query rows, float32 [B, H, R, S]; grouped key heads are shared."""
    query_BHRD = query_BHLD.index_select(2, rows_R).float() * scaling
    batch, heads, rows, head_dim = query_BHRD.shape
    key_heads = key_BGSD.shape[1]
    grouped = query_BHRD.reshape(batch, key_heads, (heads // key_heads) * rows, head_dim)
    return (grouped @ key_BGSD.float().transpose(-1, -2)).reshape(batch, heads, rows, -1)


def energy_sums(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    *,
    scaling: float,
    attention_mask: Tensor | None = None,
    is_causal: bool = True,
    row_count: int | None = None,
    offset: float = 0.5,
    with_entropy: bool = False,
) -> EnergySums:
    """Sums over pairs of E and |E| and over rows of the entropy, per head, exactly or from sampled query rows.

    With ``row_count`` rows of L, each sum is the Horvitz–Thompson estimate (L/row_count)·Σ over the sampled rows, which
    is unbiased over offset ~ U[0, 1). The number of allowed pairs is counted, not estimated, where there is no mask;
    with a mask it is estimated from the same rows, so that the mean is a ratio estimate (bias O(1/row_count)).

    Args:
        query_BHLD, key_BGSD: any floating dtype; computed in float32.
        row_count: None or >= L for all rows.
        offset: of the systematic sample, see ``systematic_rows``.

    Cost: O(B·H·R·S·D) time, O(B·H·R·S) memory, R the number of rows used.
    """
    length, key_length = query_BHLD.shape[2], key_BGSD.shape[2]
    if row_count is None or row_count >= length:
        row_count, offset = length, 0.0
    rows_R = systematic_rows(length, row_count, offset, query_BHLD.device)
    energy_BHRS = row_energies(query_BHLD, key_BGSD, rows_R, scaling)
    allowed = allowed_pairs(attention_mask, rows_R, length, key_length, is_causal)
    weight = length / row_count

    pairs, rows = _count_pairs_and_rows(attention_mask, allowed, energy_BHRS, length, key_length, is_causal)
    entropy = weight * row_entropies(energy_BHRS, allowed).sum((0, 2)) if with_entropy else None
    energy_BHRS = energy_BHRS * allowed
    return EnergySums(
        pairs=pairs,
        rows=rows,
        energy=weight * energy_BHRS.sum((0, 2, 3)),
        absolute_energy=weight * energy_BHRS.abs_().sum((0, 2, 3)),
        entropy=entropy,
    )


def row_entropies(energy_BHRS: Tensor, allowed: Tensor) -> Tensor:
    """Entropy in nats of softmax over the allowed keys of each row, [B, H, R]; 0 for a row with no allowed key."""
    log_pattern = torch.log_softmax(energy_BHRS.masked_fill(~allowed, -torch.inf), dim=-1)
    # A forbidden pair has log a = −inf and a row without keys has nan: both contribute nothing.
    log_pattern = torch.where(allowed, log_pattern, torch.zeros_like(log_pattern))
    pattern = torch.where(allowed, log_pattern.exp(), torch.zeros_like(log_pattern))
    return -(pattern * log_pattern).sum(-1)


def _count_pairs_and_rows(
    attention_mask: Tensor | None,
    allowed: Tensor,
    energy_BHRS: Tensor,
    length: int,
    key_length: int,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """Numbers of allowed pairs and of rows with at least one, over the whole batch, as float32 scalars."""
    batch, _, row_count, _ = energy_BHRS.shape
    device = energy_BHRS.device
    if attention_mask is None:
        if is_causal and length > 1:
            shorter = min(length, key_length)
            pairs = shorter * (shorter + 1) // 2 + (length - shorter) * key_length
        else:
            pairs = length * key_length
        # torch.full fills on the device; torch.tensor would copy from the host and wait.
        return torch.full((), float(batch * pairs), device=device), torch.full((), float(batch * length), device=device)
    # One count serves all heads: a mask that differs between heads is averaged over them.
    share = batch / allowed.shape[0] / allowed.shape[1] * (length / row_count)
    return share * allowed.sum().float(), share * allowed.any(-1).sum().float()
