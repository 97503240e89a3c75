"""Energies of attention: pure functions of queries, keys and mask.

The energy E_ij is the score that enters the softmax before masking: scaling · q_i·k_j, soft-capped where the
architecture does that, plus its position bias. It is defined on allowed pairs only: a masked or padded pair has no
energy and enters no statistic.

Shape suffixes: B batch, H query heads, G key heads (H is a multiple of G), L queries, S keys, R some of the query rows,
D head_dim. Everything is computed in float32, or in float64 where the queries are float64.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Additive masks forbid with −inf, the dtype's minimum or −1e9; no position bias comes near that.
FORBIDDEN_BELOW = -1e8


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """Inputs of the softmax of one attention layer.

    Attributes:
        query: [B, H, L, D] and key: [B, G, S, D], of any floating dtype, after rotary embedding.
        scaling: factor on q·k.
        attention_mask: None, or broadcastable to [B, H, L, S]: boolean (True is allowed) or additive (a value at or
            below half the dtype's minimum, or −1e8, forbids; any other is a bias and part of E).
        is_causal: applied when there is no mask, aligned at the upper left as in scaled_dot_product_attention.
        softcap: None, or c of E ← c·tanh(E/c).
        position_bias: None, or broadcastable to [B, H, L, S]; added after the soft-cap.
        temperature: T of the pattern softmax(E/T), for all heads or [H]. E itself does not contain it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    attention_mask: Tensor | None = None
    is_causal: bool = True
    softcap: float | None = None
    position_bias: Tensor | None = None
    temperature: float | Tensor = 1.0

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.query.shape[0]

    @property
    def length(self) -> int:
        """Query rows per sequence, L."""
        return self.query.shape[2]

    @property
    def key_length(self) -> int:
        """Keys per sequence, S."""
        return self.key.shape[2]

    @property
    def broadcast_temperature(self) -> float | Tensor:
        """T in a form that divides [B, H, R, S]."""
        return self.temperature.view(-1, 1, 1) if isinstance(self.temperature, Tensor) else self.temperature

    @property
    def masks_the_future(self) -> bool:
        """Return whether the causal rule alone, without an explicit mask, decides which pairs are allowed."""
        return self.attention_mask is None and self.is_causal and self.length > 1

    @property
    def first_position(self) -> int:
        """Position of the first query among the keys: with a cache, the queries are the last of the sequence.

        A static cache has empty slots behind them, so that distances are then counted from its end.
        """
        return 0 if self.masks_the_future else self.key_length - self.length

    def first_keys(self, count: int) -> "AttentionInputs":
        """Without the keys from ``count`` on; only for inputs without an explicit mask."""
        bias = self.position_bias
        return replace(
            self,
            key=self.key[:, :, :count],
            position_bias=None if bias is None else bias[..., :count],
        )

    def energies(self, rows_R: Tensor) -> Tensor:
        """E of the given query rows, [B, H, R, S]; on forbidden pairs a finite number without meaning."""
        energy = row_energies(self.query, self.key, rows_R, self.scaling)
        if self.softcap is not None:
            energy = torch.tanh(energy / self.softcap) * self.softcap
        if self.position_bias is not None:
            energy = energy + _rows_of(self.position_bias, rows_R, self.length)
        mask = self.attention_mask
        if mask is not None and mask.dtype != torch.bool:
            bias = _rows_of(mask, rows_R, self.length)[..., : self.key_length]
            energy = energy + bias.masked_fill(~is_allowed(bias), 0.0)
        return energy

    def allowed(self, rows_R: Tensor) -> Tensor:
        """Return which keys the given query rows may attend to, bool [B or 1, H or 1, R, S]."""
        return allowed_pairs(self.attention_mask, rows_R, self.length, self.key_length, self.is_causal)

    def count_pairs_and_rows(self) -> tuple[Tensor, Tensor]:
        """Numbers of allowed pairs and of rows with at least one, over the batch; each [1], or [H] if heads differ.

        Counted, never estimated: one pass over the mask where there is one.
        """
        mask, device = self.attention_mask, self.query.device
        if mask is None:
            pairs = self.length * self.key_length
            if self.masks_the_future:
                shorter = min(self.length, self.key_length)
                pairs = shorter * (shorter + 1) // 2 + (self.length - shorter) * self.key_length
            # torch.full fills on the device; torch.tensor would copy from the host and wait.
            dtype = working_dtype(self.query)
            return (
                torch.full((1,), float(self.batch * pairs), dtype=dtype, device=device),
                torch.full((1,), float(self.batch * self.length), dtype=dtype, device=device),
            )
        allowed = is_allowed(mask[..., : self.key_length])
        # Summing bytes is ten times faster than summing booleans; a compiler fuses the conversion, and not every one
        # knows the view.
        as_bytes = allowed.to(torch.uint8) if torch.compiler.is_compiling() else allowed.view(torch.uint8)
        keys_of_row = as_bytes.sum(-1, dtype=torch.int32)
        share = self.batch / mask.shape[0] * self.length / mask.shape[2]
        dtype = working_dtype(self.query)
        return keys_of_row.sum((0, 2)).to(dtype) * share, (keys_of_row > 0).sum((0, 2)).to(dtype) * share

    def without_padded_rows(self) -> "AttentionInputs":
        """The same with the rows of padded queries forbidden: those whose own key is, in attention of a sequence to
        itself. A padding mask forbids keys alone, so that a padded query would still count.

        A mask that is not square is left as it is: with a cache the queries are new tokens, which are never padding.
        """
        mask = self.attention_mask
        if mask is None or mask.shape[2] != self.length or mask.shape[-1] != self.length:
            return self
        padded = ~is_allowed(mask).diagonal(dim1=-2, dim2=-1)[..., None]
        forbidden = False if mask.dtype == torch.bool else float("-inf")
        return replace(self, attention_mask=mask.masked_fill(padded, forbidden))

    def first_token(self) -> Tensor:
        """Index of each sequence's first token: the first key that any of its rows may attend to, [B or 1, H or 1]."""
        if self.attention_mask is None:
            return torch.zeros((1, 1), dtype=torch.int64, device=self.query.device)
        reachable = is_allowed(self.attention_mask[..., : self.key_length]).any(-2)
        return reachable.int().argmax(-1)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32: half precision would round what the statistics are to resolve."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def is_allowed(mask: Tensor) -> Tensor:
    """Boolean form of a mask that may be additive."""
    if mask.dtype == torch.bool:
        return mask
    return mask > max(torch.finfo(mask.dtype).min / 2, FORBIDDEN_BELOW)


def allowed_pairs(
    attention_mask: Tensor | None, rows_R: Tensor, query_length: int, key_length: int, is_causal: bool
) -> Tensor:
    """Return which keys the given query rows may attend to; arguments as in ``AttentionInputs``.

    Args:
        rows_R: int64 [R], indices of query rows.

    Returns: bool [B or 1, H or 1, R, S].
    """
    if attention_mask is None:
        keys_S = torch.arange(key_length, device=rows_R.device)
        if is_causal and query_length > 1:
            return (keys_S <= rows_R[:, None])[None, None]
        return torch.ones((1, 1, rows_R.shape[0], key_length), dtype=torch.bool, device=rows_R.device)
    mask = is_allowed(_rows_of(attention_mask, rows_R, query_length)[..., :key_length])
    return mask.expand(-1, -1, rows_R.shape[0], -1)


def row_energies(query_BHLD: Tensor, key_BGSD: Tensor, rows_R: Tensor, scaling: float) -> Tensor:
    """scaling · q_i·k_j for the given query rows, [B, H, R, S]; grouped key heads are shared, not copied."""
    dtype = working_dtype(query_BHLD)
    query_BHRD = query_BHLD.index_select(2, rows_R).to(dtype) * scaling
    batch, heads, rows, head_dim = query_BHRD.shape
    key_heads = key_BGSD.shape[1]
    grouped = query_BHRD.reshape(batch, key_heads, (heads // key_heads) * rows, head_dim)
    return (grouped @ key_BGSD.to(dtype).transpose(-1, -2)).reshape(batch, heads, rows, -1)


def systematic_rows(length: int, count: int, offset: float, device: torch.device) -> Tensor:
    """Choose ``count`` of ``length`` rows, one from each of ``count`` equal strata: ⌊(k + offset)·length/count⌋.

    With offset uniform on [0, 1) every row is included with probability count/length, so that sums weighted by
    length/count are unbiased (Horvitz and Thompson 1952; systematic sampling, Madow 1949), and the strata keep the
    variance low where a statistic depends on the position.

    Returns: int64 [count], increasing and distinct for count <= length.
    """
    positions = (torch.arange(count, device=device, dtype=torch.float64) + offset) * (length / count)
    return positions.long().clamp_(max=length - 1)


def _rows_of(mask: Tensor, rows_R: Tensor, query_length: int) -> Tensor:
    """The given rows of a mask or bias whose row dimension may be broadcast."""
    return mask[:, :, rows_R] if mask.shape[2] == query_length else mask
