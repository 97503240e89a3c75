"""The readable reference: every statistic from the whole L×L matrix, written as it is defined."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.quantities import terms_of
from natattn.attention.statistics import EnergyStatistics


def dense_statistics(inputs: AttentionInputs, quantities: Collection[str]) -> EnergyStatistics:
    """Exact statistics by their definitions; memory and time O(B·H·L·S).

    Nothing is shared with the fast forms but the energies themselves: the tests hold those to this.
    """
    rows_L = torch.arange(inputs.length, device=inputs.query.device)
    energy = inputs.energies(rows_L)
    allowed = inputs.allowed(rows_L).expand_as(energy)
    T = inputs.broadcast_temperature
    T_row = T[..., 0] if isinstance(T, Tensor) else T

    has_key = allowed.any(-1)
    masked = energy.masked_fill(~allowed, -torch.inf)
    pattern = torch.softmax(masked / T, -1).masked_fill(~allowed, 0.0)
    log_partition = torch.logsumexp(masked / T, -1).masked_fill(~has_key, 0.0)
    energy = energy.masked_fill(~allowed, 0.0)
    internal = -(pattern * energy).sum(-1)
    entropy = torch.special.entr(pattern).sum(-1)

    def heat_capacity() -> Tensor:
        deviation = energy + internal[..., None]
        return (pattern * deviation**2).sum(-1) / T_row**2

    def distance() -> Tensor:
        keys_S = torch.arange(inputs.key_length, device=energy.device)
        return (pattern * (rows_L[:, None] + inputs.first_position - keys_S).abs()).sum(-1)

    def sink_mass() -> Tensor:
        first = inputs.first_token()[:, :, None, None]
        is_first = torch.arange(inputs.key_length, device=energy.device) == first
        return (pattern * is_first).sum(-1)

    per_row: dict[str, Callable[[], Tensor]] = {
        "energy": lambda: energy.sum(-1),
        "absolute_energy": lambda: energy.abs().sum(-1),
        "square_energy": lambda: (energy**2).sum(-1),
        "maximum": lambda: masked.amax(-1),
        "free_energy": lambda: -T_row * log_partition,
        "internal_energy": lambda: internal,
        "entropy": lambda: entropy,
        "heat_capacity": heat_capacity,
        "effective_support": lambda: torch.exp(entropy) * has_key,
        "participation": lambda: (pattern**2).sum(-1),
        "attention_distance": distance,
        "sink_mass": sink_mass,
    }
    totals = {
        term: per_row[term]().amax((0, 2)) if term == "maximum" else per_row[term]().sum((0, 2))
        for term in terms_of(quantities)
    }
    pairs, rows = inputs.count_pairs_and_rows()
    return EnergyStatistics(pairs, rows, totals)
