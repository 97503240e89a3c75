"""Muon in the metric of Kronecker factors: fisher_muon, natural_muon, newton_muon, whitened_muon, per-head Muon.

Shape suffixes: V matrices of one shape, H heads (1 where a matrix is not cut), D rows of a head, N columns.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from natattn.attention.energy import working_dtype
from natattn.config.base import Decay, Positive, Settings
from natattn.fisher.kronecker import FactorName
from natattn.fisher.roots import damped_inverse, inverse_cholesky
from natattn.optim.directions.base import ADAM_RMS, Direction, FactorStatistics, Place, State, Statistics
from natattn.optim.directions.momentum import average_gradients
from natattn.optim.directions.orthogonalise import NewtonSchulzDtype, orthogonalise

Sides = Literal["both", "input", "output"]
Form = Literal["dual", "newton"]
Kept = Literal["root", "inverse"]
INPUT_FACTOR: dict[str, FactorName] = {"query": "query_input", "key": "key_input", "value": "value_input"}
TRACED_FACTOR: dict[str, FactorName] = {
    "query": "query_input_traced", "key": "key_input_traced", "value": "value_input",
}  # fmt: skip
OUTPUT_FACTOR: dict[str, FactorName] = {"query": "query_output", "key": "key_output"}
COVARIANCE = "covariance"


class WhitenedSettings(Settings):
    """A matrix's momentum M, orthogonalised in the metric of its factors S (of outputs) and A (of inputs).

    ``metric``: attention, D1's factors of W_Q, W_K and W_V; traced, the input factors that are left when the output
    side is summed out; covariance, A = mean x xᵀ of the plain inputs; or none.
    ``form``: dual, u = S^(−1/2) orth(S^(−1/2) M A^(−1/2)) A^(−1/2), the steepest descent under the spectral norm of
    S^(1/2) u A^(1/2); newton, u = orth(S⁻¹ M A⁻¹). ``damping`` is in units of each factor's mean eigenvalue, and
    ``refresh_every`` counts steps between decompositions. u is scaled to the root mean square of an Adam update.
    """

    kind: Literal["whitened"]
    metric: Literal["attention", "traced", "covariance", "none"]
    sides: Sides
    form: Form
    per_head: bool
    damping: Positive
    refresh_every: int = Field(ge=1)
    momentum: Decay
    nesterov: bool
    newton_schulz_steps: int = Field(ge=1, lt=100)
    newton_schulz_dtype: NewtonSchulzDtype

    @model_validator(mode="after")
    def _sides_exist(self) -> "WhitenedSettings":
        if self.metric in ("covariance", "traced") and self.sides != "input":
            raise ValueError(f"sides={self.sides}: metric={self.metric} is of the inputs; valid: input")
        return self

    def build(self) -> "Whitened":
        """The direction itself."""
        return Whitened(self)


class Whitened(Direction):
    """Orthogonalised momentum in a metric; state: the momentum, and per factor a root (dual) or the inverse (newton).

    A factor that cannot be decomposed leaves its last good one in use, the identity before there was one, and adds to
    ``failed``. State memory: one number per element, and per matrix heads·N² + heads·D² for roots or inverses.
    """

    def __init__(self, settings: WhitenedSettings) -> None:
        self.settings = settings

    @property
    def needs_statistics(self) -> bool:
        """Whether there is a metric."""
        return self.settings.metric != "none"

    def factors(self, role: str) -> tuple[str, ...]:
        """Names of the factors, those of the input and of the output."""
        return tuple(name for name in self._sides_of(role) if name is not None)

    def check(self, place: Place) -> None:
        """Raises: ValueError for what is no matrix of a layer, or is to be cut into heads and has none."""
        super().check(place)
        self._heads(place)
        if self.settings.metric == "covariance" and (place.role == "embedding" or not place.module):
            raise ValueError(
                f"metric=covariance: the {place.role} parameters ({place.module}) have no inputs to observe"
            )
        if self.settings.metric in ("attention", "traced") and place.layer is None:
            raise ValueError(
                f"metric={self.settings.metric}: the {place.role} parameters are in no attention layer that is known"
            )

    def initial_state(self, parameter: Tensor) -> State:
        """Zero momentum; roots are added when the first factors arrive."""
        return {
            "momentum": torch.zeros_like(parameter),
            "host_step": torch.zeros((), dtype=torch.int64),
            "failed": torch.zeros((), dtype=torch.int64, device=parameter.device),
        }

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The updates, in batches of equal shapes."""
        settings = self.settings
        self._refresh(states, places, statistics)
        for state in states:
            state["host_step"] += 1
        momenta = average_gradients(gradients, states, settings.momentum, nesterov=settings.nesterov)
        updates: list[Tensor] = [torch.empty(0)] * len(momenta)
        names = [f"{side}_{self._kept}" for side in ("output", "input")]
        for members in _equal(momenta, states, places, names).values():
            outputs, inputs = (_stacked([states[index].get(name) for index in members]) for name in names)
            batch = torch.stack([momenta[index] for index in members])
            found = self._batch(batch, outputs, inputs, places[members[0]])
            for index, update in zip(members, found.unbind(), strict=True):
                updates[index] = update
        return updates

    def condition_numbers(self, state: State, place: Place, statistics: Statistics) -> tuple[Tensor, Tensor] | None:
        """See ``Direction``; None without a root."""
        name = self._sides_of(place.role)[0]
        kept = f"input_{self._kept}"
        if name is None or kept not in state:
            return None
        average = _factor_statistics(statistics).average(_owner(place, name), name)
        if average is None:
            return None
        return damped_condition_numbers(average, state[kept], self._kept, self.settings.damping)

    @property
    def _kept(self) -> Kept:
        """Of (factor + damping)⁻¹ the dual form needs a root R, with Rᵀ R the inverse, on both sides of orth."""
        return "inverse" if self.settings.form == "newton" else "root"

    def _batch(
        self, momenta_VRN: Tensor, output_kept: Tensor | None, input_kept: Tensor | None, place: Place
    ) -> Tensor:
        """Updates of a batch at the root mean square of Adam's, [V, rows, N]; arguments of ``_unscaled``."""
        update = self._unscaled(momenta_VRN, output_kept, input_kept, place)
        scale = ADAM_RMS / update.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-30)
        return (update * scale).to(momenta_VRN.dtype)

    def _unscaled(
        self, momenta_VRN: Tensor, output_kept: Tensor | None, input_kept: Tensor | None, place: Place
    ) -> Tensor:
        """orth of R_S M R_Aᵀ, back by R_Sᵀ X R_A (dual), or of S⁻¹ M A⁻¹ (newton), of a batch, [V, rows, N].

        Args:
            output_kept, input_kept: roots or inverses [V, heads or 1, dim, dim].
        """
        count, rows, columns = momenta_VRN.shape
        momenta_VHDN = momenta_VRN.to(working_dtype(momenta_VRN)).view(count, self._heads(place), -1, columns)
        update = self._orthogonal(_between(momenta_VHDN, output_kept, input_kept))
        if self._kept == "root":
            output_kept, input_kept = (None if root is None else root.mT for root in (output_kept, input_kept))
            update = _between(update, output_kept, input_kept)
        return update.reshape(count, rows, columns)

    def _heads(self, place: Place) -> int:
        is_cut = self.settings.per_head or self.settings.metric in ("attention", "traced")
        return heads_of(place) if is_cut else 1

    def _orthogonal(self, matrices_VHDN: Tensor) -> Tensor:
        settings = self.settings
        matrices = matrices_VHDN if settings.per_head else matrices_VHDN.flatten(1, 2)
        orthogonal = orthogonalise(matrices, settings.newton_schulz_steps, settings.newton_schulz_dtype)
        return orthogonal.view(matrices_VHDN.shape)

    def _refresh(self, states: Sequence[State], places: Sequence[Place], statistics: Statistics | None) -> None:
        """Decompose the factors whose turn it is, in batches of equal shapes."""
        if not self.needs_statistics:
            return
        source = _factor_statistics(statistics)
        due: dict[tuple[str, torch.Size], list[tuple[State, Tensor]]] = {}
        for state, place in zip(states, places, strict=True):
            if int(state["host_step"]) % self.settings.refresh_every:
                continue
            for side, name in zip(("input", "output"), self._sides_of(place.role), strict=True):
                average = None if name is None else source.average(_owner(place, name), name)
                if average is None:
                    continue  # no metric yet: the identity
                due.setdefault((side, average.shape), []).append((state, average))
        for (side, _), entries in due.items():
            averages = [average for _, average in entries]
            refresh([state for state, _ in entries], f"{side}_{self._kept}", averages, self.settings.damping)

    def _sides_of(self, role: str) -> tuple[str | None, str | None]:
        """Names of the input and the output factor."""
        settings = self.settings
        if settings.metric == "none":
            return None, None
        if settings.metric == "covariance":
            return COVARIANCE, None
        if settings.metric == "traced":
            return sides_of(role, "input", TRACED_FACTOR)
        return sides_of(role, settings.sides)


def sides_of(
    role: str, sides: Sides, input_factor: Mapping[str, FactorName] = INPUT_FACTOR
) -> tuple[str | None, str | None]:
    """Names of attention's input and output factor of a matrix, None for one that is not wanted or does not exist."""
    if role not in input_factor:
        raise ValueError(f"metric=attention: there are no attention factors for the {role} role; valid: covariance")
    return (
        input_factor[role] if sides != "output" else None,
        OUTPUT_FACTOR.get(role) if sides != "input" else None,
    )


def refresh(states: Sequence[State], name: str, averages: Sequence[Tensor], damping: float | Tensor) -> None:
    """Put the damped inverses of some averages of one shape, or roots of them, into ``state[name]``.

    Args:
        name: ends in "root" for R with Rᵀ R the inverse, in "inverse" for the inverse itself.
    """
    stacked = torch.stack(list(averages))
    results, good = (damped_inverse if name.endswith("inverse") else inverse_cholesky)(stacked, damping)
    for state, result, is_good in zip(states, results.unbind(), good.unbind(), strict=True):
        previous = state.get(name)
        if previous is None:
            previous = torch.eye(result.shape[-1], dtype=result.dtype, device=result.device).expand_as(result)
        state[name] = torch.where(is_good[..., None, None], result, previous)
        state["failed"] = state["failed"] + (~is_good).sum()


def damped_condition_numbers(average: Tensor, kept: Tensor, kind: Kept, damping: float) -> tuple[Tensor, Tensor]:
    """Condition numbers of A + damping · mean eigenvalue · I, and of R times that times Rᵀ; [heads] each.

    The second is 1 when the root, or the inverse that it is a root of, is that of this very average.
    """
    average = average.double()
    root = torch.linalg.cholesky(kept.double()).mT if kind == "inverse" else kept.double()
    mean = average.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    damped = average + damping * mean * torch.eye(average.shape[-1], dtype=average.dtype, device=average.device)
    preconditioned = root @ damped @ root.mT
    before, after = (torch.linalg.eigvalsh(matrix) for matrix in (damped, preconditioned))
    return before[:, -1] / before[:, 0], after[:, -1] / after[:, 0]


def heads_of(place: Place) -> int:
    """Heads that a matrix is cut into.

    Raises: ValueError where it has none.
    """
    if place.heads is None or place.role == "output":
        raise ValueError(f"per_head: the {place.role} matrices ({place.module}) are not made of heads, row by row")
    return place.heads


def _owner(place: Place, name: str) -> str | int:
    if name == COVARIANCE:
        return place.module
    assert place.layer is not None
    return place.layer


def _factor_statistics(statistics: Statistics | None) -> FactorStatistics:
    if not hasattr(statistics, "average"):
        raise ValueError("the direction needs Kronecker factors: give the optimizer a FisherProbe")
    return statistics  # type: ignore[return-value]


def _equal(
    momenta: Sequence[Tensor], states: Sequence[State], places: Sequence[Place], names: Sequence[str]
) -> dict[tuple[object, ...], list[int]]:
    """Indices of the matrices that can be orthogonalised as one batch: alike, and alike in what is kept of them."""
    batches: dict[tuple[object, ...], list[int]] = {}
    for index, (matrix, state, place) in enumerate(zip(momenta, states, places, strict=True)):
        kept = tuple(state[name].shape if name in state else None for name in names)
        batches.setdefault((matrix.shape, matrix.dtype, place.heads, *kept), []).append(index)
    return batches


def _stacked(matrices: Sequence[Tensor | None]) -> Tensor | None:
    """None where there are none; all have one or none has."""
    found = [matrix for matrix in matrices if matrix is not None]
    return torch.stack(found) if found else None


def _between(matrices_VHDN: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """L M Rᵀ, in the dtype of M; L and R of every matrix for each of its heads, or one for all."""
    result, dtype = matrices_VHDN, matrices_VHDN.dtype
    if left is not None:
        result = left.to(dtype) @ result
    if right is None:
        return result
    if right.shape[1] == 1:  # as one product, not as one for each head
        return (result.flatten(1, 2) @ right[:, 0].to(dtype).mT).view_as(result)
    return result @ right.to(dtype).mT
