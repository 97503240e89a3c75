"""Statistics of attention energies per layer: totals per head that add up, measured from all query rows or some."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs, systematic_rows, working_dtype
from natattn.attention.quantities import MAXIMUM, QUANTITIES, TERMS, AttentionRows, terms_of
from natattn.distributed.ranks import Ranks

CHUNK_ROWS = 128
Counts = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class EnergyStatistics:
    """Statistics of the energies of one layer, per head; ``statistics["entropy"]`` is a tensor [H].

    What can be asked for, and what each is a mean over, is in ``natattn.attention.quantities.QUANTITIES``:

    - over allowed pairs: mean_energy, mean_absolute_energy, mean_square_energy;
    - over query rows that have an allowed key: free_energy, internal_energy, entropy, heat_capacity,
      effective_support (the mean of exp(S_i)), participation, attention_distance, sink_mass;
    - of all pairs: maximum, standard_deviation. These two are ``BIASED_WHEN_SAMPLED``: from sampled rows the maximum is
      a lower bound and the standard deviation is biased by O(1/rows). Every other quantity is unbiased.

    In float32 the standard deviation loses digits where |mean E| is far larger than it: the relative error of the
    variance is about 1e-7 · mean E² / variance.

    Attributes:
        pairs, rows: counts of allowed pairs and of rows that have one, over the whole batch; [1], or [H] if the mask
            differs between heads.
        totals: by term, [H]: the (estimated) sum over all rows of the batch; of "maximum" the largest.
        sampled: terms that come from sampled rows.
    """

    pairs: Tensor
    rows: Tensor
    totals: Mapping[str, Tensor]
    sampled: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Tensor:
        """A quantity per head, [H], on the model's device; no allowed pair at all gives nan (maximum: −inf).

        Raises: KeyError for an unknown quantity or one whose totals were not recorded.
        """
        if name not in QUANTITIES:
            raise KeyError(f"unknown attention quantity {name!r}; there are {', '.join(QUANTITIES)}")
        quantity = QUANTITIES[name]
        if any(term not in self.totals for term in quantity.terms):
            raise KeyError(f"{name} was not asked for; recorded are {', '.join(self.quantities)}")
        if name == "maximum":
            return self.totals[MAXIMUM]
        if name == "standard_deviation":
            variance = self.totals["square_energy"] / self.pairs - (self.totals["energy"] / self.pairs).square()
            return variance.clamp_min(0).sqrt()
        return self.totals[quantity.terms[0]] / (self.pairs if quantity.over == "pairs" else self.rows)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names that can be read from these totals."""
        recorded = self.totals.keys()
        return tuple(name for name, quantity in QUANTITIES.items() if recorded >= set(quantity.terms))

    def is_biased(self, name: str) -> bool:
        """Return whether this value is biased, an approximation even on average: see ``BIASED_WHEN_SAMPLED``."""
        return QUANTITIES[name].biased_when_sampled and any(term in self.sampled for term in QUANTITIES[name].terms)

    def __add__(self, other: "EnergyStatistics") -> "EnergyStatistics":
        """Statistics of both batches together."""
        return EnergyStatistics(
            pairs=self.pairs + other.pairs,
            rows=self.rows + other.rows,
            totals={
                name: torch.maximum(total, other.totals[name]) if name == MAXIMUM else total + other.totals[name]
                for name, total in self.totals.items()
            },
            sampled=self.sampled | other.sampled,
        )

    def with_totals_of(self, other: "EnergyStatistics") -> "EnergyStatistics":
        """Return the statistics with the totals of another record of the same batch added or replaced."""
        return replace(
            self, totals={**self.totals, **other.totals}, sampled=(self.sampled - other.totals.keys()) | other.sampled
        )


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


def all_reduce(layers: Sequence[EnergyStatistics], ranks: Ranks) -> list[EnergyStatistics]:
    """Statistics over the batches of all ranks together: at most two collectives, however many layers there are.

    Every rank must hold the same layers and terms.
    """
    sums = [tensor for layer in layers for tensor in (layer.pairs, layer.rows, *_summed(layer).values())]
    maxima = [layer.totals[MAXIMUM] for layer in layers if MAXIMUM in layer.totals]
    reduced_sums = iter(ranks.sum(sums))
    reduced_maxima = iter(ranks.maximum(maxima))
    results = []
    for layer in layers:
        pairs, rows = next(reduced_sums), next(reduced_sums)
        totals = {name: next(reduced_sums) for name in _summed(layer)}
        if MAXIMUM in layer.totals:
            totals[MAXIMUM] = next(reduced_maxima)
        results.append(replace(layer, pairs=pairs, rows=rows, totals=totals))
    return results


def _summed(layer: EnergyStatistics) -> dict[str, Tensor]:
    return {name: total for name, total in layer.totals.items() if name != MAXIMUM}
