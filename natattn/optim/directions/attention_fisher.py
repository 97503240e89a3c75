"""Adam with momentum preconditioned by the attention-Fisher: fa_adam, aif_blend, multiscale and critical.

*Attention-Informed Optimization* (AIO), *Attention as Natural Gradient* (ANG) and *Criticality and Phase Transitions in
Transformer Networks* (CPT) describe these for "the Fisher matrix" without saying which. Here it is D1-Kron of W_Q and
W_K (``natattn.fisher.kronecker``), and every preconditioned momentum is rescaled to the norm of its matrix's Adam
update: one learning rate serves both, and only the direction differs.

Shape suffixes: H heads, D rows of a head, N columns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.attention.critical_exponents import Exponents, critical_temperatures
from natattn.attention.energy import working_dtype
from natattn.config.base import Decay, Positive, Settings
from natattn.optim.directions.adam import Adam
from natattn.optim.directions.base import Direction, FactorStatistics, Statistics, factor_statistics
from natattn.optim.directions.whitened import damped_condition_numbers, heads_of, refresh, sides_of
from natattn.optim.matrix import Matrix, State

LEVELS = 3


class Levels(Settings):
    """Damping and step multiplier of the local, the middle and the global heads (ANG, 4.2).

    Heads are sorted into terciles of their layer by mean attention distance. ``sort_every`` counts steps between
    sortings; a head changes its level only if its rank is past the tercile by more than ``hysteresis`` ranks.
    """

    damping: tuple[Positive, Positive, Positive]
    multipliers: tuple[Positive, Positive, Positive]
    sort_every: int = Field(ge=1)
    hysteresis: float = Field(ge=0)


class AttentionFisher(Direction):
    """Adam, with the momentum m̂ of W_Q and W_K preconditioned per head by S and A of D1-Kron, at Adam's norm.

    ``form``: inverse, S⁻¹ m̂ A⁻¹, the natural gradient (fa_adam); additive, m̂ + m̂P with P = A·N/tr A, ANG's
    F⁻¹ ≈ I + A; printed, S m̂ A, the Fisher in place of its inverse as CPT prints it. ``blend``: null, or γ of
    α·adam + (1 − α)·preconditioned with α = sigmoid(γ · mean E) of the layer (AIO, 3.2).
    ``levels``: null, or damping and step multiplier by the attention distance of heads (ANG, 4.2).
    ``head_exponents``: null, or α_k of the step multipliers T_c(k) = temperature · (N/768)^(−α_k), one for all heads or
    a list (CPT, 3.2). State memory: Adam's, and heads·N² + heads·D² for the roots.
    """

    kind: Literal["attention_fisher"] = "attention_fisher"
    betas: tuple[Decay, Decay]
    eps: Positive
    form: Literal["inverse", "additive", "printed"]
    damping: Positive
    refresh_every: int = Field(ge=1)
    blend: float | None
    levels: Levels | None
    head_exponents: Exponents | None
    temperature: Positive = 1.0

    @property
    def quantities(self) -> tuple[str, ...]:  # type: ignore[override]
        """The mean energy for ``blend``, the attention distance for ``levels``."""
        wanted = {"mean_energy": self.blend is not None, "attention_distance": self.levels is not None}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def factors(self, role: str) -> tuple[str, ...]:
        """Return A and S, or A alone for the additive form."""
        return tuple(name for name in self._sides_of(role) if name is not None)

    def check(self, matrix: Matrix) -> None:
        """Raise ValueError for a parameter that is not a matrix with heads, or that has not one exponent per head."""
        super().check(matrix)
        if matrix.layer is None:
            raise ValueError(f"attention_fisher: the {matrix.role} parameters are in no known attention layer")
        heads = heads_of(matrix)
        if isinstance(self.head_exponents, tuple) and len(self.head_exponents) not in (1, heads):
            raise ValueError(f"head_exponents: {len(self.head_exponents)} exponents for {heads} heads")

    def initial_state(self, value: Tensor) -> State:
        """Return Adam's; the first factors add roots."""
        failed = torch.zeros((), dtype=torch.int64, device=value.device)
        return {**self._adam().initial_state(value), "host_step": torch.zeros((), dtype=torch.int64), "failed": failed}

    def updates(self, matrices: Sequence[Matrix], attention: Statistics | None) -> list[Tensor]:
        """Return the updates, computed one matrix at a time and its heads as a batch."""
        statistics = factor_statistics(attention)
        updates = []
        for matrix, adam_update in zip(matrices, self._adam().updates(matrices, attention), strict=True):
            update = self._update(adam_update.to(working_dtype(adam_update)), matrix, statistics)
            updates.append(update.to(adam_update.dtype))
            matrix.state["host_step"] += 1
        return updates

    def condition_numbers(self, matrix: Matrix, attention: Any) -> tuple[Tensor, Tensor] | None:
        """See ``Direction``; None also for a form without roots, and if every level has its own damping."""
        if "input_root" not in matrix.state or self.levels is not None or matrix.layer is None:
            return None
        average = attention.average(matrix.layer, str(sides_of(matrix.role, "input")[0]))
        return (
            None
            if average is None
            else damped_condition_numbers(average, matrix.state["input_root"], "root", self.damping)
        )

    def _adam(self) -> Adam:
        return Adam(betas=self.betas, eps=self.eps)

    def _update(self, adam_update: Tensor, matrix: Matrix, attention: FactorStatistics) -> Tensor:
        state, layer, heads = matrix.state, matrix.layer, heads_of(matrix)
        assert layer is not None
        factors = {name: attention.average(layer, name) for name in self.factors(matrix.role)}
        is_recorded = not self.quantities or layer in attention.recorded_layers
        if None in factors.values() or not is_recorded:
            return adam_update  # nothing is known of this layer yet, or in this step
        levels = None
        if self.levels is not None:
            levels = levels_of(self.levels, attention.attention_distance(layer), heads, state)
        momentum = state["exp_avg"].to(adam_update.dtype) / (1 - self.betas[0] ** state["step"])
        momentum_HDN = momentum.reshape(heads, -1, momentum.shape[-1])
        input_factor, output_factor = (factors.get(str(name)) for name in self._sides_of(matrix.role))
        assert input_factor is not None
        preconditioned = self._preconditioned(momentum_HDN, state, input_factor, output_factor, levels).flatten(0, 1)
        norm = torch.linalg.vector_norm
        preconditioned = preconditioned * (norm(adam_update) / norm(preconditioned).clamp_min(1e-30))
        if self.blend is not None:
            share = torch.sigmoid(self.blend * attention.mean_energy(layer))
            preconditioned = share * adam_update + (1 - share) * preconditioned
        multipliers = torch.ones(heads, device=preconditioned.device)
        if levels is not None and self.levels is not None:
            multipliers = torch.tensor(self.levels.multipliers, device=preconditioned.device)[levels]
        if self.head_exponents is not None:
            width = preconditioned.shape[1]
            critical = critical_temperatures(self.head_exponents, width, heads, self.temperature)
            multipliers = multipliers * critical.to(preconditioned.device)
        scaled: Tensor = preconditioned.view_as(momentum_HDN) * multipliers[:, None, None]
        return scaled.flatten(0, 1)

    def _sides_of(self, role: str) -> tuple[str | None, str | None]:
        """Return the names of the input and the output factor."""
        return sides_of(role, "input" if self.form == "additive" else "both")

    def _preconditioned(
        self,
        momentum_HDN: Tensor,
        state: State,
        input_factor: Tensor,
        output_factor: Tensor | None,
        levels: Tensor | None,
    ) -> Tensor:
        dtype = momentum_HDN.dtype
        averages = [None if factor is None else factor.to(dtype) for factor in (input_factor, output_factor)]
        if self.form != "inverse":
            along_inputs = momentum_HDN @ _unit_trace(input_factor.to(dtype))
            if self.form == "additive":
                return momentum_HDN + along_inputs
            return along_inputs if averages[1] is None else _unit_trace(averages[1]) @ along_inputs
        if int(state["host_step"]) % self.refresh_every == 0 or "input_root" not in state:
            damping: float | Tensor = self.damping
            if levels is not None and self.levels is not None:
                damping = torch.tensor(self.levels.damping, device=levels.device)[levels]
            for side, average in zip(("input", "output"), averages, strict=True):
                if average is not None:
                    # A factor that the heads share must be damped once for each of their levels.
                    full = average.expand(len(momentum_HDN), -1, -1) if levels is not None else average
                    refresh([state], f"{side}_root", [full], damping)
        solved: Tensor = momentum_HDN
        if "output_root" in state:
            root = state["output_root"].to(dtype)
            solved = root.mT @ (root @ solved)
        root = state["input_root"].to(dtype)
        return solved @ root.mT @ root


def levels_of(levels: Levels, attention_distance_H: Tensor, heads: int, state: State) -> Tensor:
    """Return the level of every head, int64 [heads], which ``state["levels"]`` keeps between sortings.

    A grouped-query key head has the mean distance of the query heads that share it.
    """
    step = int(state["host_step"])
    if "levels" in state and step % levels.sort_every:
        return state["levels"]
    distance = attention_distance_H.view(heads, -1).mean(1)
    rank = distance.argsort().argsort()
    position = (rank + 0.5) * LEVELS / heads  # the level is its integer part
    sorted_levels = position.long().clamp_max(LEVELS - 1)
    if "levels" in state:
        margin = levels.hysteresis * LEVELS / heads
        old = state["levels"]
        stays = (position > old - margin) & (position < old + 1 + margin)
        sorted_levels = torch.where(stays, old, sorted_levels)
    state["levels"] = sorted_levels
    return sorted_levels


def _unit_trace(factors_HNN: Tensor) -> Tensor:
    """Return the factors scaled to a mean eigenvalue of 1."""
    trace = factors_HNN.diagonal(dim1=-2, dim2=-1).mean(-1)
    return factors_HNN / trace.clamp_min(torch.finfo(factors_HNN.dtype).tiny)[..., None, None]
