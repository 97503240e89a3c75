"""The table of quantities that can be observed of attention: what each is, and which sums it is made from.

A *term* is a number per query row; summed over the rows of a batch it gives a total, and totals add up over chunks of
rows, micro-batches and ranks. A *quantity* is a total divided by the number of allowed pairs or of rows, or a function
of such means. Only the terms of the quantities that are asked for are computed.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs

Over = Literal["pairs", "rows", "all pairs"]


class computed_once:  # noqa: N801 - reads as the decorator it is
    """``functools.cached_property`` without the lock that Python 3.11 puts into it and torch.compile cannot trace."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Tensor:
        value = self.function(instance)
        setattr(instance, self.function.__name__, value)  # shadows this descriptor from now on
        return value


class AttentionRows:
    """Some query rows of one attention layer, and what the terms need of them, each computed when first asked for.

    Per-row results have shape [B, H, R, 1]; a row without any allowed key contributes 0 to every term.
    """

    def __init__(self, inputs: AttentionInputs, rows_R: Tensor, first_token: Tensor | None = None) -> None:
        self.inputs = inputs
        self.rows_R = rows_R
        self.allowed = inputs.allowed(rows_R)
        self.energy = inputs.energies(rows_R).mul_(self.allowed)  # 0 on forbidden pairs
        self._first_token = first_token
        self.temperature = inputs.broadcast_temperature

    @computed_once
    def present(self) -> Tensor:
        """Return whether the row has an allowed key."""
        return self.allowed.any(-1, keepdim=True)

    @computed_once
    def peak(self) -> Tensor:
        """max_j E_ij, −inf for a row without keys."""
        return self.energy.masked_fill(~self.allowed, -torch.inf).amax(-1, keepdim=True)

    @computed_once
    def reference(self) -> Tensor:
        """The peak, 0 for a row without keys: the finite point that depths are counted from."""
        return self.peak.masked_fill(~self.present, 0.0)

    @computed_once
    def depth(self) -> Tensor:
        """δ_ij = (max_j E_ij − E_ij)/T ≥ 0: what entropy and heat capacity keep their digits in; 0 if forbidden."""
        # A forbidden pair may lie far above the peak: unmasked, its exponential would be inf.
        return (self.reference - self.energy).mul_(self.allowed) / self.temperature

    @computed_once
    def weight(self) -> Tensor:
        """exp(−δ_ij), 0 on forbidden pairs."""
        return torch.exp(-self.depth) * self.allowed

    @computed_once
    def partition(self) -> Tensor:
        """Σ_j exp(−δ_ij) = Z_i·exp(−max_j E_ij/T), at least 1; 1 for a row without keys."""
        return self.weight.sum(-1, keepdim=True).masked_fill(~self.present, 1.0)

    @computed_once
    def pattern(self) -> Tensor:
        """a_ij = softmax_j(E_ij/T)."""
        return self.weight / self.partition

    @computed_once
    def mean_depth(self) -> Tensor:
        """Σ_j a_ij δ_ij."""
        return (self.pattern * self.depth).sum(-1, keepdim=True)

    @computed_once
    def entropy(self) -> Tensor:
        """S_i = log Σ_j exp(−δ_ij) + Σ_j a_ij δ_ij: both parts ≥ 0, so nothing cancels."""
        return torch.log(self.partition) + self.mean_depth

    def free_energy(self) -> Tensor:
        """F_i = −T log Z_i."""
        return -self.reference - self.temperature * torch.log(self.partition)

    def internal_energy(self) -> Tensor:
        """U_i = −Σ_j a_ij E_ij."""
        return -self.reference + self.temperature * self.mean_depth

    def heat_capacity(self) -> Tensor:
        """C_i = Var_{j∼a_i}(E_ij)/T², with the variance about the mean."""
        return (self.pattern * (self.depth - self.mean_depth).square()).sum(-1, keepdim=True)

    def attention_distance(self) -> Tensor:
        """Σ_j a_ij |i − j|."""
        positions = self.rows_R + self.inputs.first_position
        keys_S = torch.arange(self.inputs.key_length, device=self.rows_R.device)
        distance_RS = (positions[:, None] - keys_S).abs().to(self.pattern.dtype)
        return (self.pattern * distance_RS).sum(-1, keepdim=True)

    def sink_mass(self) -> Tensor:
        """a_ij of the sequence's first token."""
        if self._first_token is None:
            raise ValueError("sink_mass needs the index of the first token")
        index = self._first_token[:, :, None, None].expand(*self.pattern.shape[:3], 1)
        # In a chunk of a causal layer the keys end with the chunk; the first token is always among them.
        return self.pattern.gather(-1, index)


TERMS: Mapping[str, Callable[[AttentionRows], Tensor]] = {
    "energy": lambda rows: rows.energy.sum(-1, keepdim=True),
    "absolute_energy": lambda rows: rows.energy.abs().sum(-1, keepdim=True),
    "square_energy": lambda rows: rows.energy.square().sum(-1, keepdim=True),
    "maximum": lambda rows: rows.peak,
    "free_energy": AttentionRows.free_energy,
    "internal_energy": AttentionRows.internal_energy,
    "entropy": lambda rows: rows.entropy,
    "heat_capacity": AttentionRows.heat_capacity,
    "effective_support": lambda rows: rows.entropy.exp() * rows.present,
    "participation": lambda rows: rows.pattern.square().sum(-1, keepdim=True),
    "attention_distance": AttentionRows.attention_distance,
    "sink_mass": AttentionRows.sink_mass,
}
MAXIMUM = "maximum"  # the one term whose total is a maximum, not a sum


@dataclass(frozen=True)
class Quantity:
    """One observable, a number per head.

    Attributes:
        over: what it is a mean over: allowed pairs, or query rows that have an allowed key; or a function of all pairs.
        terms: the totals that it is made from.
        meaning: formula and unit.
        biased_when_sampled: from sampled rows its expectation is not the exact value.
    """

    over: Over
    terms: tuple[str, ...]
    meaning: str
    biased_when_sampled: bool = False


QUANTITIES: Mapping[str, Quantity] = {
    "mean_energy": Quantity("pairs", ("energy",), "E, nats at T = 1"),
    "mean_absolute_energy": Quantity("pairs", ("absolute_energy",), "|E|"),
    "mean_square_energy": Quantity("pairs", ("square_energy",), "E²"),
    "standard_deviation": Quantity(
        "all pairs", ("energy", "square_energy"), "√(mean E² − (mean E)²)", biased_when_sampled=True
    ),
    "maximum": Quantity("all pairs", ("maximum",), "max E; a lower bound when sampled", biased_when_sampled=True),
    "free_energy": Quantity("rows", ("free_energy",), "F_i = −T log Σ_j exp(E_ij/T)"),
    "internal_energy": Quantity("rows", ("internal_energy",), "U_i = −Σ_j a_ij E_ij"),
    "entropy": Quantity("rows", ("entropy",), "S_i = −Σ_j a_ij log a_ij, nats"),
    "heat_capacity": Quantity("rows", ("heat_capacity",), "C_i = Var_{j∼a_i}(E_ij)/T²"),
    "effective_support": Quantity("rows", ("effective_support",), "exp(S_i), keys; mean of exp, not exp of the mean"),
    "participation": Quantity("rows", ("participation",), "Σ_j a_ij²"),
    "attention_distance": Quantity("rows", ("attention_distance",), "Σ_j a_ij |i − j|, tokens"),
    "sink_mass": Quantity("rows", ("sink_mass",), "a_ij of the sequence's first token"),
}

BIASED_WHEN_SAMPLED = frozenset(name for name, quantity in QUANTITIES.items() if quantity.biased_when_sampled)


def terms_of(quantities: Collection[str]) -> tuple[str, ...]:
    """The terms that some quantities need, in the table's order.

    Raises: ValueError for a name that is not in ``QUANTITIES``.
    """
    for name in quantities:
        if name not in QUANTITIES:
            raise ValueError(f"unknown attention quantity {name!r}; there are {', '.join(QUANTITIES)}")
    needed = {term for name in quantities for term in QUANTITIES[name].terms}
    return tuple(term for term in TERMS if term in needed)
