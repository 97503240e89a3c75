"""Muon in the metric of Kronecker factors: fisher_muon, natural_muon, newton_muon, whitened_muon, per-head Muon.

Shape suffixes: V matrices of one shape, H heads (1 if a matrix is not cut), D rows of a head, N columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from natattn.attention.energy import working_dtype
from natattn.config.base import Decay, Positive
from natattn.fisher.kronecker import FactorName
from natattn.fisher.roots import damped_inverse, inverse_cholesky
from natattn.optim.directions.base import Direction, Statistics, factor_statistics, in_batches
from natattn.optim.directions.momentum import average_gradients
from natattn.optim.directions.orthogonal import NewtonSchulzDtype, at_adam_rms, orthogonalise
from natattn.optim.matrix import Matrix, State

Sides = Literal["both", "input", "output"]
Form = Literal["dual", "newton"]
Kept = Literal["root", "inverse"]
INPUT_FACTOR: dict[str, FactorName] = {"query": "query_input", "key": "key_input", "value": "value_input"}
TRACED_FACTOR: dict[str, FactorName] = {
    "query": "query_input_traced",
    "key": "key_input_traced",
    "value": "value_input",
}
OUTPUT_FACTOR: dict[str, FactorName] = {"query": "query_output", "key": "key_output"}
COVARIANCE = "covariance"


class Whitened(Direction):
    """A matrix's momentum M, orthogonalised in the metric of its factors S (of outputs) and A (of inputs).

    ``metric``: attention, the factors D1-Kron and D1-V of W_Q, W_K and W_V (``natattn.fisher.kronecker``); traced, the
    input factors that remain when the output side is summed out; covariance, A = mean x xᵀ of the plain inputs; or
    none. ``form``: dual, u = S^(−1/2) orth(S^(−1/2) M A^(−1/2)) A^(−1/2), the steepest descent under the spectral norm
    of S^(1/2) u A^(1/2); newton, u = orth(S⁻¹ M A⁻¹). ``damping`` is in units of each factor's mean eigenvalue, and
    ``refresh_every`` counts steps between decompositions. u is scaled to the root mean square of an Adam update.

    State: the momentum, and per factor a root (dual) or the inverse (newton). If a factor cannot be decomposed, its
    last good decomposition stays in use, or the identity before there was one, and ``failed`` counts it.
    State memory: one number per element, and per matrix heads·N² + heads·D² for roots or inverses.
    """

    kind: Literal["whitened"] = "whitened"
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
    def _sides_exist(self) -> "Whitened":
        if self.metric in ("covariance", "traced") and self.sides != "input":
            raise ValueError(f"sides={self.sides}: metric={self.metric} has input factors only. Use sides=input")
        return self

    def factors(self, role: str) -> tuple[str, ...]:
        """Return the names of the input and the output factor."""
        return tuple(name for name in self._sides_of(role) if name is not None)

    def check(self, matrix: Matrix) -> None:
        """Raise ValueError for a parameter that is not a matrix of a layer, or without the heads to be cut into."""
        super().check(matrix)
        self._heads(matrix)
        if self.metric == "covariance" and (matrix.role == "embedding" or not matrix.module):
            raise ValueError(
                f"metric=covariance: the {matrix.role} parameters ({matrix.module}) have no inputs to observe"
            )
        if self.metric in ("attention", "traced") and matrix.layer is None:
            raise ValueError(f"metric={self.metric}: the {matrix.role} parameters are in no known attention layer")

    def initial_state(self, value: Tensor) -> State:
        """Return zero momentum; the first factors add roots."""
        return {
            "momentum": torch.zeros_like(value),
            "host_step": torch.zeros((), dtype=torch.int64),
            "failed": torch.zeros((), dtype=torch.int64, device=value.device),
        }

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the updates, in batches of equal shapes with equal factors."""
        self._refresh(matrices, attention)
        for matrix in matrices:
            matrix.state["host_step"] += 1
        momenta = average_gradients(matrices, self.momentum, nesterov=self.nesterov)
        output_name, input_name = f"output_{self._kept}", f"input_{self._kept}"
        kept = [(matrix.state.get(output_name), matrix.state.get(input_name)) for matrix in matrices]

        def whitened(indices: list[int]) -> Tensor:
            batch = torch.stack([momenta[index] for index in indices])
            sides = zip(*[kept[index] for index in indices], strict=True)
            output_kept, input_kept = [None if side[0] is None else torch.stack(side) for side in sides]
            heads = self._heads(matrices[indices[0]])
            return at_adam_rms(self.unscaled(batch, output_kept, input_kept, heads)).to(batch.dtype)

        keys = [
            (value.shape, value.dtype, matrix.heads, getattr(sides[0], "shape", None), getattr(sides[1], "shape", None))
            for matrix, value, sides in zip(matrices, momenta, kept, strict=True)
        ]
        return in_batches(keys, whitened)

    def unscaled(
        self, momenta_VRN: Tensor, output_kept: Tensor | None, input_kept: Tensor | None, heads: int
    ) -> Tensor:
        """Return R_Sᵀ orth(R_S M R_Aᵀ) R_A (dual) or orth(S⁻¹ M A⁻¹) (newton) of a batch, [V, rows, N].

        Args:
            momenta_VRN: M, cut into ``heads`` along its rows.
            output_kept, input_kept: roots R or inverses, [V, heads or 1, dim, dim]; None for the identity.
        """
        count, rows, columns = momenta_VRN.shape
        momenta_VHDN = momenta_VRN.to(working_dtype(momenta_VRN)).view(count, heads, -1, columns)
        between = _between(momenta_VHDN, output_kept, input_kept)
        orthogonal = orthogonalise(
            between if self.per_head else between.flatten(1, 2), self.newton_schulz_steps, self.newton_schulz_dtype
        )
        update = orthogonal.view(momenta_VHDN.shape)
        if self._kept == "root":
            output_kept, input_kept = (None if root is None else root.mT for root in (output_kept, input_kept))
            update = _between(update, output_kept, input_kept)
        return update.reshape(count, rows, columns)

    def condition_numbers(self, matrix: Matrix, attention: Any) -> tuple[Tensor, Tensor] | None:
        """See ``Direction``."""
        name = self._sides_of(matrix.role)[0]
        kept = matrix.state.get(f"input_{self._kept}")
        if name is None or kept is None:
            return None
        average = factor_statistics(attention).average(_owner(matrix, name), name)
        return None if average is None else damped_condition_numbers(average, kept, self._kept, self.damping)

    @property
    def _kept(self) -> Kept:
        """Return the stored form of (factor + damping)⁻¹; dual needs a root R, with Rᵀ R the inverse, on both sides."""
        return "inverse" if self.form == "newton" else "root"

    def _heads(self, matrix: Matrix) -> int:
        return heads_of(matrix) if self.per_head or self.metric in ("attention", "traced") else 1

    def _refresh(self, matrices: Sequence[Matrix], attention: Statistics | None) -> None:
        """Decompose the factors that are due, in batches of equal shapes."""
        if self.metric == "none":
            return
        source = factor_statistics(attention)
        due: dict[tuple[str, torch.Size], list[tuple[State, Tensor]]] = {}
        for matrix in matrices:
            if int(matrix.state["host_step"]) % self.refresh_every:
                continue
            for side, name in zip(("input", "output"), self._sides_of(matrix.role), strict=True):
                average = None if name is None else source.average(_owner(matrix, name), name)
                if average is not None:  # before the first capture the metric is the identity
                    due.setdefault((side, average.shape), []).append((matrix.state, average))
        for (side, _), entries in due.items():
            averages = [average for _, average in entries]
            refresh([state for state, _ in entries], f"{side}_{self._kept}", averages, self.damping)

    def _sides_of(self, role: str) -> tuple[str | None, str | None]:
        """Return the names of the input and the output factor."""
        if self.metric == "none":
            return None, None
        if self.metric == "covariance":
            return COVARIANCE, None
        return sides_of(role, self.sides, TRACED_FACTOR if self.metric == "traced" else INPUT_FACTOR)


def sides_of(
    role: str, sides: Sides, input_factor: Mapping[str, FactorName] = INPUT_FACTOR
) -> tuple[str | None, str | None]:
    """Return the names of attention's input and output factor, None for one that is not wanted or does not exist.

    Raises: ValueError for a role without attention factors.
    """
    if role not in input_factor:
        raise ValueError(f"metric=attention: the {role} role has no attention factors. Use metric=covariance")
    return (
        input_factor[role] if sides != "output" else None,
        OUTPUT_FACTOR.get(role) if sides != "input" else None,
    )


def refresh(states: Sequence[State], name: str, averages: Sequence[Tensor], damping: float | Tensor) -> None:
    """Store the damped inverses of averages of one shape, or roots of them, in ``state[name]``.

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
    """Return the condition numbers of A_δ = A + damping · mean eigenvalue · I and of R A_δ Rᵀ, [heads] each.

    The second is 1 if the root R (or the inverse Rᵀ R) was computed from this very average.
    """
    average = average.double()
    root = torch.linalg.cholesky(kept.double()).mT if kind == "inverse" else kept.double()
    mean = average.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    damped = average + damping * mean * torch.eye(average.shape[-1], dtype=average.dtype, device=average.device)
    before, after = (torch.linalg.eigvalsh(matrix) for matrix in (damped, root @ damped @ root.mT))
    return before[:, -1] / before[:, 0], after[:, -1] / after[:, 0]


def heads_of(matrix: Matrix) -> int:
    """Return the number of heads that a matrix is cut into. Raises: ValueError if it has none."""
    if matrix.heads is None or matrix.role == "output":
        raise ValueError(f"per_head: the {matrix.role} matrices ({matrix.module}) are not made of heads, row by row")
    return matrix.heads


def _owner(matrix: Matrix, name: str) -> str | int:
    if name == COVARIANCE:
        return matrix.module
    assert matrix.layer is not None
    return matrix.layer


def _between(matrices_VHDN: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Return L M Rᵀ in the dtype of M; L and R are per matrix, for each of its heads or one for all."""
    result, dtype = matrices_VHDN, matrices_VHDN.dtype
    if left is not None:
        result = left.to(dtype) @ result
    if right is None:
        return result
    if right.shape[1] == 1:  # one product for all heads instead of one for each
        return (result.flatten(1, 2) @ right[:, 0].to(dtype).mT).view_as(result)
    return result @ right.to(dtype).mT
