"""Adam whose momentum is preconditioned by the attention-Fisher: fa_adam, aif_blend, multiscale and critical.

Papers F, A and K describe these for "the Fisher matrix" and leave open what it is. Here it is D1-Kron of W_Q and W_K,
and every preconditioned momentum is rescaled to the norm of the Adam update of its matrix, so that one learning rate
serves both and only the direction differs. Shape suffixes: H heads, D rows of a head, N columns.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.attention.critical_exponents import Exponents, critical_temperatures
from natattn.attention.energy import working_dtype
from natattn.config.base import Decay, Positive, Settings
from natattn.optim.directions.adam import Adam
from natattn.optim.directions.base import Direction, FactorStatistics, Place, State, Statistics
from natattn.optim.directions.levels import Levels, levels_of
from natattn.optim.directions.whitened import damped_condition_numbers, heads_of, refresh, sides_of


class AttentionFisherSettings(Settings):
    """Adam, with the momentum m̂ of W_Q and W_K preconditioned per head by S and A of D1-Kron, at Adam's norm.

    ``form``: inverse, S⁻¹ m̂ A⁻¹, the natural gradient (fa_adam); additive, m̂ + m̂P with P = A·N/tr A, paper F's
    F⁻¹ ≈ I + A; printed, S m̂ A, the Fisher in place of its inverse as paper K prints it. ``blend``: null, or γ of
    α·adam + (1 − α)·preconditioned with α = sigmoid(γ · mean E) of the layer (paper A, 3.2).
    ``levels``: null, or damping and step multiplier by the attention distance of heads (paper F, 4.2).
    ``head_exponents``: null, or α_k of the step multipliers T_c(k) = temperature · (N/768)^(−α_k), one for all heads or
    a list (paper K, 3.2).
    """

    kind: Literal["attention_fisher"]
    betas: tuple[Decay, Decay]
    eps: Positive
    form: Literal["inverse", "additive", "printed"]
    damping: Positive
    refresh_every: int = Field(ge=1)
    blend: float | None
    levels: Levels | None
    head_exponents: Exponents | None
    temperature: Positive = 1.0

    def build(self) -> "AttentionFisher":
        """The direction itself."""
        return AttentionFisher(self)


class AttentionFisher(Direction):
    """Adam's averages, then the metric of attention; state memory: Adam's, heads·N² + heads·D² for the roots."""

    def __init__(self, settings: AttentionFisherSettings) -> None:
        self.settings = settings
        self.adam = Adam(settings.betas, settings.eps)
        wanted = {"mean_energy": settings.blend is not None, "attention_distance": settings.levels is not None}
        self.quantities = tuple(name for name, is_wanted in wanted.items() if is_wanted)

    @property
    def needs_statistics(self) -> bool:
        """Always."""
        return True

    def factors(self, role: str) -> tuple[str, ...]:
        """S and A, or A alone for the additive form."""
        return tuple(name for name in self._sides_of(role) if name is not None)

    def check(self, place: Place) -> None:
        """Raises: ValueError for what is no matrix with heads, or has another number of them than of exponents."""
        super().check(place)
        if place.layer is None:
            raise ValueError(f"attention_fisher: the {place.role} parameters are in no attention layer that is known")
        exponents, heads = self.settings.head_exponents, heads_of(place)
        if isinstance(exponents, tuple) and len(exponents) not in (1, heads):
            raise ValueError(f"head_exponents: {len(exponents)} exponents for {heads} heads")

    def initial_state(self, parameter: Tensor) -> State:
        """Adam's; roots are added when the first factors arrive."""
        failed = torch.zeros((), dtype=torch.int64, device=parameter.device)
        return {**self.adam.initial_state(parameter), "host_step": torch.zeros((), dtype=torch.int64), "failed": failed}

    def updates(
        self,
        gradients: Sequence[Tensor],
        states: Sequence[State],
        places: Sequence[Place],
        statistics: Statistics | None,
    ) -> list[Tensor]:
        """The updates, one matrix at a time and its heads as a batch."""
        if not hasattr(statistics, "average"):
            raise ValueError("attention_fisher needs Kronecker factors: give the optimizer a FisherProbe")
        adam_updates = self.adam.updates(gradients, states, places, statistics)
        beta1 = self.settings.betas[0]
        updates = []
        for adam_update, state, place in zip(adam_updates, states, places, strict=True):
            dtype = working_dtype(adam_update)
            momentum = state["exp_avg"].to(dtype) / (1 - beta1 ** state["step"])
            update = self._of_matrix(adam_update.to(dtype), momentum, state, place, statistics)  # type: ignore[arg-type]
            updates.append(update.to(adam_update.dtype))
            state["host_step"] += 1
        return updates

    def condition_numbers(self, state: State, place: Place, statistics: Statistics) -> tuple[Tensor, Tensor] | None:
        """See ``Direction``; None for a form without roots, and where every level has its own damping."""
        if "input_root" not in state or self.settings.levels is not None or place.layer is None:
            return None
        name = sides_of(place.role, "input")[0]
        average = statistics.average(place.layer, str(name))  # type: ignore[attr-defined]
        if average is None:
            return None
        return damped_condition_numbers(average, state["input_root"], "root", self.settings.damping)

    def _of_matrix(
        self, adam_update: Tensor, momentum: Tensor, state: State, place: Place, statistics: FactorStatistics
    ) -> Tensor:
        settings, heads = self.settings, heads_of(place)
        assert place.layer is not None
        factors = {name: statistics.average(place.layer, name) for name in self.factors(place.role)}
        recorded = not self.quantities or place.layer in statistics.recorded_layers
        if None in factors.values() or not recorded:
            return adam_update  # nothing is known of this layer yet, or in this step
        levels = None
        if settings.levels is not None:
            levels = levels_of(settings.levels, statistics.attention_distance(place.layer), heads, state)
        momentum_HDN = momentum.reshape(heads, -1, momentum.shape[-1])
        input_factor, output_factor = (factors.get(str(name)) for name in self._sides_of(place.role))
        assert input_factor is not None
        preconditioned = self._preconditioned(momentum_HDN, state, input_factor, output_factor, levels).flatten(0, 1)
        norm = torch.linalg.vector_norm
        preconditioned = preconditioned * (norm(adam_update) / norm(preconditioned).clamp_min(1e-30))
        if settings.blend is not None:
            share = torch.sigmoid(settings.blend * statistics.mean_energy(place.layer))
            preconditioned = share * adam_update + (1 - share) * preconditioned
        scaled: Tensor = preconditioned.view_as(momentum_HDN) * self._multipliers(preconditioned, levels, heads)
        return scaled.flatten(0, 1)

    def _sides_of(self, role: str) -> tuple[str | None, str | None]:
        """Names of the input and the output factor."""
        return sides_of(role, "input" if self.settings.form == "additive" else "both")

    def _preconditioned(
        self,
        momentum_HDN: Tensor,
        state: State,
        input_factor: Tensor,
        output_factor: Tensor | None,
        levels: Tensor | None,
    ) -> Tensor:
        settings, dtype = self.settings, momentum_HDN.dtype
        averages = [None if factor is None else factor.to(dtype) for factor in (input_factor, output_factor)]
        if settings.form != "inverse":
            along_inputs = momentum_HDN @ _unit_trace(input_factor.to(dtype))
            if settings.form == "additive":
                return momentum_HDN + along_inputs
            return along_inputs if averages[1] is None else _unit_trace(averages[1]) @ along_inputs
        if int(state["host_step"]) % settings.refresh_every == 0 or "input_root" not in state:
            damping: float | Tensor = settings.damping
            if levels is not None and settings.levels is not None:
                damping = torch.tensor(settings.levels.damping, device=levels.device)[levels]
            for side, average in zip(("input", "output"), averages, strict=True):
                if average is not None:
                    # A factor that is shared by the heads must be damped once for each of their levels.
                    full = average.expand(len(momentum_HDN), -1, -1) if levels is not None else average
                    refresh([state], f"{side}_root", [full], damping)
        solved: Tensor = momentum_HDN
        if "output_root" in state:
            root = state["output_root"].to(dtype)
            solved = root.mT @ (root @ solved)
        root = state["input_root"].to(dtype)
        return solved @ root.mT @ root

    def _multipliers(self, update: Tensor, levels: Tensor | None, heads: int) -> Tensor:
        """Step multiplier of every head, [H, 1, 1]."""
        settings = self.settings
        multipliers = torch.ones(heads, device=update.device)
        if levels is not None and settings.levels is not None:
            multipliers = torch.tensor(settings.levels.multipliers, device=update.device)[levels]
        if settings.head_exponents is not None:
            multipliers = multipliers * critical_temperatures(
                settings.head_exponents, update.shape[1], heads, settings.temperature
            ).to(update.device)
        return multipliers[:, None, None]


def _unit_trace(factors_HNN: Tensor) -> Tensor:
    """Factors with a mean eigenvalue of 1."""
    trace = factors_HNN.diagonal(dim1=-2, dim2=-1).mean(-1)
    return factors_HNN / trace.clamp_min(torch.finfo(factors_HNN.dtype).tiny)[..., None, None]
