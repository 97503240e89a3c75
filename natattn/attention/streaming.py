"""Statistics without an L×L matrix: exactly, in chunks of query rows, or estimated from some of the rows."""

from collections.abc import Collection

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs, systematic_rows, working_dtype
from natattn.attention.quantities import MAXIMUM, TERMS, AttentionRows, terms_of
from natattn.attention.statistics import EnergyStatistics

CHUNK_ROWS = 128
Counts = tuple[Tensor, Tensor]


def streaming_statistics(
    inputs: AttentionInputs, quantities: Collection[str], *, chunk_rows: int = CHUNK_ROWS, counts: Counts | None = None
) -> EnergyStatistics:
    """Exact statistics; time O(B·H·L·S·D), memory O(B·H·chunk_rows·S).

    A chunk holds whole rows, so that every row's softmax is complete in it. In a causal layer a chunk reads only the
    keys up to its last row. mean_energy alone needs no rows at all, see ``closed_energy_total``.

    Args:
        counts: numbers of allowed pairs and rows, where they are known already.
    """
    terms = terms_of(quantities)
    pairs, rows = counts or inputs.count_pairs_and_rows()
    if terms == ("energy",) and _is_plain(inputs):
        return EnergyStatistics(pairs, rows, {"energy": closed_energy_total(inputs)})
    first_token = inputs.first_token() if "sink_mass" in terms else None
    totals: dict[str, Tensor] = {}
    for start in range(0, inputs.length, chunk_rows):
        stop = min(start + chunk_rows, inputs.length)
        rows_R = torch.arange(start, stop, device=inputs.query.device)
        visible = inputs.first_keys(min(stop, inputs.key_length)) if inputs.masks_the_future else inputs
        chunk = _totals(AttentionRows(visible, rows_R, first_token), terms)
        for name, total in chunk.items():
            if name not in totals:
                totals[name] = total
            else:
                totals[name] = torch.maximum(totals[name], total) if name == MAXIMUM else totals[name] + total
    return EnergyStatistics(pairs, rows, totals)


def sampled_statistics(
    inputs: AttentionInputs, quantities: Collection[str], *, row_count: int, offset: float, counts: Counts | None = None
) -> EnergyStatistics:
    """Statistics estimated from ``row_count`` query rows; time O(B·H·row_count·S·D), memory O(B·H·row_count·S).

    Each total is the Horvitz–Thompson estimate (L/row_count)·Σ over the sampled rows, and the numbers of pairs and rows
    are counted, so that over offset ~ U[0, 1) every quantity outside ``BIASED_WHEN_SAMPLED`` is unbiased.

    Args:
        row_count: L or more takes every row.
        offset: of the systematic sample, see ``systematic_rows``.
        counts: numbers of allowed pairs and rows, where they are known already.
    """
    if row_count >= inputs.length:
        row_count, offset = inputs.length, 0.0
    terms = terms_of(quantities)
    pairs, rows = counts or inputs.count_pairs_and_rows()
    rows_R = systematic_rows(inputs.length, row_count, offset, inputs.query.device)
    first_token = inputs.first_token() if "sink_mass" in terms else None
    totals = _totals(AttentionRows(inputs, rows_R, first_token), terms, weight=inputs.length / row_count)
    return EnergyStatistics(pairs, rows, totals, frozenset(terms) if row_count < inputs.length else frozenset())


def closed_energy_total(inputs: AttentionInputs) -> Tensor:
    """Σ_ij E_ij over allowed pairs per head, [H], in O(B·H·L·D): scaling · Σ_i q_i·(Σ_{j≤i} k_j), or Σ_j over all keys.

    Only for inputs without mask, soft-cap and position bias.
    """
    dtype = working_dtype(inputs.query)
    query_BHLD, key_BGSD = inputs.query.to(dtype), inputs.key.to(dtype)
    if inputs.masks_the_future:
        key_sums = key_BGSD.cumsum(2)
        missing = inputs.length - inputs.key_length
        if missing > 0:  # queries after the last key see all keys
            key_sums = torch.cat([key_sums, key_sums[:, :, -1:].expand(-1, -1, missing, -1)], dim=2)
        key_sums = key_sums[:, :, : inputs.length]
    else:
        key_sums = key_BGSD.sum(2, keepdim=True)
    batch, heads, length, head_dim = query_BHLD.shape
    groups = key_sums.shape[1]
    products = query_BHLD.view(batch, groups, heads // groups, length, head_dim) * key_sums[:, :, None]
    return inputs.scaling * products.sum((0, 3, 4)).view(heads)


def _is_plain(inputs: AttentionInputs) -> bool:
    return inputs.attention_mask is None and inputs.softcap is None and inputs.position_bias is None


def _totals(rows: AttentionRows, terms: Collection[str], weight: float = 1.0) -> dict[str, Tensor]:
    """Each term, summed over batch and rows and weighted, [H]; of the maximum the largest."""
    return {
        name: TERMS[name](rows).amax((0, 2, 3)) if name == MAXIMUM else TERMS[name](rows).sum((0, 2, 3)) * weight
        for name in terms
    }
