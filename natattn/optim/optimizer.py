"""An optimizer is role → direction × step: one ``torch.optim.Optimizer`` for every entry of ``optim=``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from natattn.optim.directions import Direction, DirectionSettings, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaled
from natattn.optim.partition import HIDDEN_ROLES, ROLES, ParameterView, Role, partition
from natattn.settings import Name, Settings

DIRECTION_KEYS = (*ROLES, "hidden", "default")


class OptimSettings(Settings):
    """Which direction each role takes, and the step that they share.

    ``directions`` maps a role, ``hidden`` (query, key, value, output, mlp) or ``default`` to a direction; the most
    specific one holds. ``learning_rates`` gives some of these keys a rate of their own.
    """

    name: Name
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    directions: dict[str, DirectionSettings]
    learning_rates: dict[str, Annotated[float, Field(gt=0)]]

    @field_validator("directions", "learning_rates")
    @classmethod
    def _known_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in value if key not in DIRECTION_KEYS]
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}; valid: {', '.join(DIRECTION_KEYS)}")
        return value

    @field_validator("directions")
    @classmethod
    def _complete(cls, value: dict[str, Any]) -> dict[str, Any]:
        missing = [role for role in ROLES if _key_of(value, role) is None]
        if missing:
            raise ValueError(f"no direction for role {missing[0]!r}; add it or a default")
        return value

    @property
    def needs_statistics(self) -> bool:
        """Whether a direction reads attention, so that the model must be observed."""
        return any(direction.build().needs_statistics for direction in self.directions.values())

    def build(self, model: nn.Module, statistics: Statistics | None = None) -> "DirectionalOptimizer":
        """The optimizer of a model; ``statistics`` is the probe attached to it."""
        return DirectionalOptimizer(
            partition(model),
            {key: direction.build() for key, direction in self.directions.items()},
            learning_rate=self.learning_rate,
            learning_rates=self.learning_rates,
            weight_decay=self.weight_decay,
            statistics=statistics,
        )


class DirectionalOptimizer(torch.optim.Optimizer):
    """Applies to each parameter view the direction of its role.

    A parameter group holds the parameters of one direction and one weight decay; weight decay is for matrices only.
    ``group["lr"]`` is read at every step, so that learning-rate schedulers work as with any PyTorch optimizer.

    Args:
        views: of every trainable parameter, from ``partition``.
        directions: by role, ``hidden`` or ``default``.
        learning_rates: for some of these keys, in place of ``learning_rate``.
        statistics: what directions that read attention are told, usually an ``AttentionProbe``.

    Raises:
        ValueError: slices of one fused weight fall into groups of different directions or rates.
    """

    def __init__(
        self,
        views: list[ParameterView],
        directions: dict[str, Direction],
        *,
        learning_rate: float,
        weight_decay: float,
        learning_rates: dict[str, Annotated[float, Field(gt=0)]] | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.directions = directions
        self.statistics = statistics
        by_parameter: dict[nn.Parameter, list[ParameterView]] = {}
        for view in views:
            by_parameter.setdefault(view.parameter, []).append(view)

        rates = learning_rates or {}
        groups: dict[tuple[str, float, float], dict[str, Any]] = {}
        self._slots: dict[nn.Parameter, list[ParameterView]] = {}
        for parameter, members in by_parameter.items():
            decay = weight_decay if parameter.ndim > 1 else 0.0
            keys = {
                (str(_key_of(directions, view.role)), rates.get(str(_key_of(rates, view.role)), learning_rate), decay)
                for view in members
            }
            if len(keys) > 1:
                raise ValueError(
                    f"{members[0].name}: the slices of a fused weight need one direction and learning rate"
                )
            key, rate, _ = identity = keys.pop()
            group = {"params": [], "direction": key, "lr": rate, "weight_decay": decay}
            groups.setdefault(identity, group)["params"].append(parameter)
            self._slots[parameter] = _slots(members, directions[key])
        super().__init__(list(groups.values()), {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        direction = self.directions[group["direction"]]
        views = [view for p in group["params"] if p.grad is not None for view in self._slots[p]]
        if not views:
            return
        direction.step_(
            [view.of(view.parameter.data) for view in views],
            [view.of(view.parameter.grad) for view in views],  # type: ignore[arg-type]
            [self._state_of(view, direction) for view in views],
            [view.layer for view in views],
            self.statistics,
            learning_rate=group["lr"],
            weight_decay=group["weight_decay"],
        )

    def _state_of(self, view: ParameterView, direction: Direction) -> dict[str, Tensor]:
        """The view's part of its parameter's state, without the prefix that tells slices of a fused weight apart."""
        state = self.state[view.parameter]
        prefix = view.state_prefix
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not own:
            own = direction.initial_state(view.of(view.parameter.data))
            state.update({prefix + key: value for key, value in own.items()})
        return own

    def energy_factors(self) -> dict[int, Tensor]:
        """Energy factor of every layer at the last step; empty for an optimizer that has none."""
        for direction in self.directions.values():
            if isinstance(direction, EnergyScaled) and self.statistics is not None:
                return direction.factors(self.statistics)
        return {}


def _key_of(table: dict[str, Any], role: Role) -> str | None:
    """The most specific key of a table that holds for a role: the role itself, ``hidden``, ``default``."""
    candidates = (role, "hidden", "default") if role in HIDDEN_ROLES else (role, "default")
    return next((key for key in candidates if key in table), None)


def _slots(views: list[ParameterView], direction: Direction) -> list[ParameterView]:
    """What the direction is shown: an elementwise one the parameter as it is stored, others its matrices."""
    if direction.elementwise:
        return [replace(views[0], dim=None, transposed=False)]
    return views
