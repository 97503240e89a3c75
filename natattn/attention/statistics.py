"""Energy statistics of one attention layer: totals per head that add up, and the means made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natattn.attention.quantities import MAXIMUM, QUANTITIES
from natattn.distributed.ranks import Ranks


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
        """Whether this value is only an approximation, even on average: see ``BIASED_WHEN_SAMPLED``."""
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
        """The same batch's statistics with the other's totals added to them, or in place of them."""
        return replace(
            self, totals={**self.totals, **other.totals}, sampled=(self.sampled - other.totals.keys()) | other.sampled
        )


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
