"""An optimizer is role → direction × step: one ``torch.optim.Optimizer`` for every entry of ``optim=``."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natattn.optim.directions.base import Direction, Place, State, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaled
from natattn.optim.partition import HIDDEN_ROLES, ROLES, ParameterView, Role
from natattn.optim.placebo import PlaceboStatistics

DIRECTION_KEYS = (*ROLES, "hidden", "default")


@dataclass(frozen=True)
class Slot:
    """What a direction is shown of a parameter, with the direction's key and its rate relative to the group's."""

    view: ParameterView
    direction: str
    rate: float
    parts: tuple[ParameterView, ...]  # the matrices in it, each with a role of its own

    @property
    def place(self) -> Place:
        """Where it stands in the model."""
        view = self.view
        return Place(view.role, view.layer, view.module, view.heads, view.parameter.ndim)


class DirectionalOptimizer(torch.optim.Optimizer):
    """Applies to each parameter view the direction of its role.

    A parameter group holds parameters with the same directions, rates and weight decay; weight decay is for matrices
    only. ``group["lr"]`` is read at every step, so that learning-rate schedulers work as with any PyTorch optimizer;
    slices of a fused weight whose roles have other rates keep their ratio to it.

    Args:
        views: of every trainable parameter, from ``partition``.
        directions: by role, ``hidden`` or ``default``.
        learning_rates: for some of these keys, in place of ``learning_rate``.
        statistics: what directions that read attention are told, usually an ``AttentionProbe``.

    Raises: ValueError for a matrix that its direction cannot serve.
    """

    def __init__(
        self,
        views: list[ParameterView],
        directions: dict[str, Direction],
        *,
        learning_rate: float,
        weight_decay: float,
        learning_rates: Mapping[str, float] | None = None,
        statistics: Statistics | PlaceboStatistics | None = None,
    ) -> None:
        self.directions = directions
        self.statistics = statistics
        self.steps = 0
        self.last_updates: dict[str, Any] = {}  # what ``measure_next_step`` measured, and at which step
        self.measuring = False
        self._slots: dict[nn.Parameter, list[Slot]] = {}
        by_parameter: dict[nn.Parameter, list[ParameterView]] = {}
        for view in views:
            by_parameter.setdefault(view.parameter, []).append(view)

        rates = learning_rates or {}
        groups: dict[object, dict[str, Any]] = {}
        for parameter, members in by_parameter.items():
            decay = weight_decay if parameter.ndim == 2 else 0.0
            keys = [str(key_of(directions, view.role)) for view in members]
            own_rates = [rates.get(str(key_of(rates, view.role)), learning_rate) for view in members]
            group = {"params": [], "directions": keys, "lr": own_rates[0], "weight_decay": decay}
            groups.setdefault((*keys, *own_rates, decay), group)["params"].append(parameter)
            relative = [rate / own_rates[0] for rate in own_rates]
            slots = [Slot(view, key, rate, (view,)) for view, key, rate in zip(members, keys, relative, strict=True)]
            self._slots[parameter] = self._merged(slots)
            for slot in self._slots[parameter]:
                directions[slot.direction].check(slot.place)
        super().__init__(list(groups.values()), {"lr": learning_rate, "weight_decay": weight_decay})

    def _merged(self, slots: list[Slot]) -> list[Slot]:
        """What the directions are shown: an elementwise one the parameter as it is stored, others its matrices."""
        first = slots[0]
        alike = all((slot.direction, slot.rate) == (first.direction, first.rate) for slot in slots)
        if alike and self.directions[first.direction].elementwise:
            whole = replace(first.view, dim=None, transposed=False)
            return [replace(first, view=whole, parts=tuple(slot.view for slot in slots))]
        return slots

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those that no view was given for take the direction of ``param_group["role"]``, or default.

        Weight decay is for matrices, unless the group says otherwise.

        Raises: ValueError for an unknown role, or where there is no direction for it that serves such parameters.
        """
        has_decay = "weight_decay" in param_group
        super().add_param_group(param_group)
        if not has_decay and all(parameter.ndim != 2 for parameter in param_group["params"]):
            param_group["weight_decay"] = 0.0
        role = param_group.pop("role", None)
        key = "default" if role is None else key_of(self.directions, role) if role in ROLES else None
        for number, parameter in enumerate(param_group["params"]):
            if parameter in self._slots:
                continue
            if key not in self.directions:
                self.param_groups.remove(param_group)
                raise ValueError(f"role={role}: no direction for it; valid: {', '.join(self.directions)}")
            view = ParameterView(f"added {len(self.param_groups)}.{number}", parameter, role or "vector", None)
            slot = Slot(view, str(key), 1.0, (view,))
            try:
                self.directions[slot.direction].check(slot.place)
            except ValueError:
                self.param_groups.remove(param_group)
                raise
            self._slots[parameter] = [slot]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self.one_step():
            for group in self.param_groups:
                self._step_group(group)
        return loss

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """What a step does around the updates, which are made inside: begin the placebo, measure, count."""
        self._begin_step()
        before = self._snapshot() if self.measuring else None
        yield
        if before is not None:
            self.last_updates = {"step": self.steps, "roles": self._measured(before)}
            self.measuring = False
        self.steps += 1

    def _begin_step(self) -> None:
        """What has to happen between the last backward pass and the first update."""
        if isinstance(self.statistics, PlaceboStatistics):
            quantities = {name: None for direction in self.directions.values() for name in direction.quantities}
            self.statistics.begin(self.steps, [name for name in quantities if name.endswith("energy")])

    def _step_group(self, group: dict[str, Any]) -> None:
        """All matrices of a group that share a direction and a rate take their step together."""
        batches: dict[tuple[str, float], list[Slot]] = {}
        for parameter in group["params"]:
            for slot in self._slots[parameter] if parameter.grad is not None else ():
                batches.setdefault((slot.direction, slot.rate), []).append(slot)
        for (key, rate), slots in batches.items():
            direction, views = self.directions[key], [slot.view for slot in slots]
            states = [self.state_of(view, direction) for view in views]
            direction.step_(
                [view.of(view.parameter.data) for view in views],
                [view.of(view.parameter.grad) for view in views],  # type: ignore[arg-type]
                states,
                [slot.place for slot in slots],
                self.statistics,  # type: ignore[arg-type]
                learning_rate=group["lr"] * rate,
                weight_decay=group["weight_decay"],
            )
            for view, state in zip(views, states, strict=True):
                self.keep_state(view, state)

    def state_of(self, view: ParameterView, direction: Direction) -> State:
        """The view's part of its parameter's state, without the prefix that tells slices of a fused weight apart."""
        state, prefix = self.state[view.parameter], view.state_prefix
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        return own or direction.initial_state(view.of(view.parameter.data))

    def keep_state(self, view: ParameterView, state: State) -> None:
        """Enter a view's state into its parameter's."""
        self.state[view.parameter].update({view.state_prefix + name: value for name, value in state.items()})

    def slots_of(self, parameter: nn.Parameter) -> list[Slot]:
        """What the directions are shown of a parameter."""
        return self._slots[parameter]

    def __getstate__(self) -> dict[str, Any]:
        """Raises: TypeError: a copy would step the original's parameters with statistics of the original's model."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: build one for the other model and load_state_dict()"
        )

    def state_dict(self) -> dict[str, Any]:
        """As of every PyTorch optimizer, with the number of steps and what a placebo has seen."""
        state = super().state_dict()
        state["steps"] = self.steps
        state["last_updates"] = self.last_updates
        if isinstance(self.statistics, PlaceboStatistics):
            state["placebo"] = self.statistics.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a ``state_dict``, every tensor in the precision that it was saved in."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.steps = state_dict.get("steps", 0)
        self.last_updates = state_dict.get("last_updates", {})
        if isinstance(self.statistics, PlaceboStatistics):
            self.statistics.load_state_dict(state_dict["placebo"])
        # torch casts floating-point state to the parameter's dtype: roots and averages are finer than bfloat16.
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(parameters, numbers, strict=True):
            saved = state_dict["state"].get(number, {})
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    # Counts that decide what is computed stay on the host: reading them must not wait for the device.
                    device = torch.device("cpu") if name.endswith("host_step") else parameter.device
                    self.state[parameter][name] = value.to(device, copy=True)

    def measure_next_step(self) -> None:
        """Have the next step's updates measured by role, at the cost of a copy of the parameters."""
        self.measuring = True

    def _snapshot(self) -> dict[nn.Parameter, Tensor]:
        return {p: p.detach().clone() for group in self.param_groups for p in group["params"] if p.grad is not None}

    def _measured(self, before: dict[nn.Parameter, Tensor]) -> dict[str, dict[str, float]]:
        """By role: the root mean square of learning_rate · u, and the same relative to the weights', if finite."""
        squares: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                slots = self._slots[parameter] if parameter in before else ()
                for view, rate in ((view, slot.rate) for slot in slots for view in slot.parts):
                    decay = 1 - group["lr"] * rate * group["weight_decay"]
                    old = view.of(before[parameter]).float()
                    update = view.of(parameter.data).float() - decay * old
                    entry = torch.stack([update.square().sum(), old.square().sum(), old.new_tensor(old.numel())])
                    squares.setdefault(view.role, []).append(entry)
        result = {}
        for role, entries in squares.items():
            update, weight, count = torch.stack(entries).sum(0).tolist()
            measured = {"update_rms": (update / count) ** 0.5}
            if weight > 0:
                measured["update_to_weight"] = (update / weight) ** 0.5
            result[role] = {name: value for name, value in measured.items() if math.isfinite(value)}
        return result

    def metrics(self) -> dict[str, float]:
        """What the last step did, by name.

        ``layer_i/energy_factor`` of the directions that have one; by role ``update_rms`` (the root mean square of the
        change, weight decay apart) and ``update_to_weight`` where that step was measured; ``condition`` and
        ``preconditioned_condition`` of the input factors, geometric means over matrices and heads;
        ``failed_decompositions`` so far.
        """
        metrics = {f"layer_{layer}/energy_factor": float(factor) for layer, factor in self.energy_factors().items()}
        if self.last_updates.get("step") == self.steps - 1:
            for role, values in self.last_updates["roles"].items():
                metrics |= {f"{role}/{name}": value for name, value in values.items()}
        conditions: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for parameter, slots in self._slots.items():
            for slot in slots if parameter in self.state else ():
                view, direction = slot.view, self.directions[slot.direction]
                found = direction.condition_numbers(self.state_of(view, direction), slot.place, self.statistics)  # type: ignore[arg-type]
                if found is not None:
                    conditions.setdefault(view.role, []).append(found)
        for role, pairs in conditions.items():
            for name, values in zip(("condition", "preconditioned_condition"), zip(*pairs, strict=True), strict=True):
                metrics[f"{role}/{name}"] = float(torch.cat(list(values)).log().mean().exp())
        if any(name.rpartition(".")[2] == "failed" for state in self.state.values() for name in state):
            metrics["failed_decompositions"] = float(self.failed_decompositions())
        return metrics

    def energy_factors(self) -> dict[int, Tensor]:
        """Energy factor of every layer at the last step; empty for an optimizer that has none."""
        for direction in self.directions.values():
            if isinstance(direction, EnergyScaled) and self.statistics is not None:
                return direction.energy_factors(self.statistics)  # type: ignore[arg-type]
        return {}

    def failed_decompositions(self) -> int:
        """How often a factor could not be entered or decomposed and the last good one was used."""
        counts = [
            int(value.sum())
            for state in self.state.values()
            for name, value in state.items()
            if name.rpartition(".")[2] == "failed"
        ]
        skipped: dict[str, int] = getattr(self.statistics, "skipped", {})
        return sum(counts) + sum(skipped.values())


def key_of(table: Mapping[str, Any], role: Role) -> str | None:
    """The most specific key of a table that holds for a role: the role itself, ``hidden``, ``default``."""
    candidates = (role, "hidden", "default") if role in HIDDEN_ROLES else (role, "default")
    return next((key for key in candidates if key in table), None)
