"""An optimizer is role → direction × step: one ``torch.optim.Optimizer`` for every entry of ``optim=``."""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natattn.distributed.ranks import Ranks, full, local
from natattn.optim.directions.base import Direction, State, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaled
from natattn.optim.measurements import Conditions, measured, preconditioner_metrics
from natattn.optim.partition import ROLES, ParameterView, Role
from natattn.optim.placebo import PlaceboStatistics
from natattn.optim.sharing import ShardedStep
from natattn.optim.slots import Slot, key_of


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
        ranks: the processes that train the same parameters. What is not elementwise is split among them: each keeps the
            state of its own matrices and computes their updates for all. Parameters may be parts (``fully_shard``).

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
        ranks: Ranks | None = None,
    ) -> None:
        self.directions = directions
        self.statistics = statistics
        self.ranks = ranks or Ranks()
        self.steps = 0
        self.last_updates: dict[str, Any] = {}  # what ``measure_next_step`` measured, and at which step
        self.measuring = False
        # By the identity of a parameter group: the parameters that had gradients, and how their slots are batched.
        self._batches: dict[int, tuple[tuple[nn.Parameter, ...], dict[tuple[str, float, bool], list[Slot]]]] = {}
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
        self.sharing = ShardedStep([slot for slots in self._slots.values() for slot in slots], directions, self.ranks)

    def _merged(self, slots: list[Slot]) -> list[Slot]:
        """What the directions are shown: an elementwise one the parameter as it is stored, others its matrices."""
        first = slots[0]
        alike = all((slot.direction, slot.rate) == (first.direction, first.rate) for slot in slots)
        if alike and self.directions[first.direction].elementwise:
            full = replace(first.view, dim=None, transposed=False)
            return [replace(first, view=full, parts=tuple(slot.view for slot in slots))]
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
        try:
            slots = self._added(param_group["params"], param_group.pop("role", None))
        except ValueError:
            self.param_groups.pop()
            raise
        for slot in slots:
            self._slots[slot.view.parameter] = [slot]
            self.sharing.add(slot)

    def _added(self, parameters: list[nn.Parameter], role: Role | None) -> list[Slot]:
        """Slots of those parameters that have none."""
        key = "default" if role is None else key_of(self.directions, role) if role in ROLES else None
        slots = []
        for number, parameter in enumerate(parameters):
            if parameter in self._slots:
                continue
            if key not in self.directions:
                raise ValueError(f"role={role}: no direction for it; valid: {', '.join(self.directions)}")
            view = ParameterView(f"added {len(self.param_groups)}.{number}", parameter, role or "vector", None)
            slots.append(Slot(view, str(key), 1.0, (view,)))
            self.directions[str(key)].check(slots[-1].place)
        return slots

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
        if self.ranks.size > 1 and self.statistics is not None:
            self.statistics.reduce(self.ranks)  # type: ignore[attr-defined,union-attr]
        if isinstance(self.statistics, PlaceboStatistics):
            quantities = {name: None for direction in self.directions.values() for name in direction.quantities}
            self.statistics.begin(self.steps, [name for name in quantities if name.endswith("energy")])

    def _step_group(self, group: dict[str, Any]) -> None:
        """All matrices of a group that share a direction and a rate take their step together."""
        for (key, rate, is_split), slots in self._batches_of(group).items():
            step = partial(self.sharing.step, self) if is_split else self._step_here
            step(self.directions[key], slots, group["lr"] * rate, group["weight_decay"])

    def _batches_of(self, group: dict[str, Any]) -> dict[tuple[str, float, bool], list[Slot]]:
        """By direction, rate and whether the work is split: the slots of a group that have a gradient."""
        having = tuple(parameter for parameter in group["params"] if parameter.grad is not None)
        known = self._batches.get(id(group))
        if known is not None and len(known[0]) == len(having) and all(map(operator.is_, known[0], having)):
            return known[1]
        batches: dict[tuple[str, float, bool], list[Slot]] = {}
        for parameter in having:
            for slot in self._slots[parameter]:
                batches.setdefault((slot.direction, slot.rate, self.sharing.is_split(slot)), []).append(slot)
        self._batches[id(group)] = having, batches
        return batches

    def _step_here(self, direction: Direction, slots: list[Slot], learning_rate: float, weight_decay: float) -> None:
        """The step of whole matrices, or of this rank's parts of parameters."""
        views = [slot.view for slot in slots]
        parameters = [view.of(local(view.parameter.data)) for view in views]
        states = [self.state_of(view, direction, parameter) for view, parameter in zip(views, parameters, strict=True)]
        direction.step_(
            parameters,
            [view.of(local(view.parameter.grad)) for view in views],  # type: ignore[arg-type]
            states,
            [slot.place for slot in slots],
            self.statistics,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
        self.keep_states(views, states)

    def keep_states(self, views: list[ParameterView], states: list[State]) -> None:
        """Enter what a direction has made of the states of some views."""
        for view, state in zip(views, states, strict=True):
            self.keep_state(view, state)

    def state_of(self, view: ParameterView, direction: Direction, like: Tensor | None = None) -> State:
        """The view's part of its parameter's state, without the prefix that tells slices of a fused weight apart.

        Args:
            like: what a first state is made for, where it is not the view of the parameter as it is stored.
        """
        return self._saved_state(view) or direction.initial_state(
            view.of(view.parameter.data) if like is None else like
        )

    def _saved_state(self, view: ParameterView) -> State:
        """The same, empty where there is none yet or another rank has it."""
        state: State = self.state[view.parameter]
        prefix = view.state_prefix
        if not prefix:
            return state
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def keep_state(self, view: ParameterView, state: State) -> None:
        """Enter a view's state into its parameter's."""
        own = self.state[view.parameter]
        if state is not own:
            own.update({view.state_prefix + name: value for name, value in state.items()})

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
        parameters = self.parameters()
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(parameters, numbers, strict=True):
            saved = state_dict["state"].get(number, {})
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    # Counts that decide what is computed stay on the host: reading them must not wait for the device.
                    device = torch.device("cpu") if name.endswith("host_step") else parameter.device
                    self.state[parameter][name] = value.to(device, copy=True)

    def parameters(self) -> list[nn.Parameter]:
        """In the order of their numbers in ``state_dict()``."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def measure_next_step(self) -> None:
        """Have the next step's updates measured by role, at the cost of a copy of the parameters."""
        self.measuring = True

    def _snapshot(self) -> dict[nn.Parameter, Tensor]:
        return {p: full(p.detach()).clone() for p in self.parameters() if p.grad is not None}

    def _measured(self, before: dict[nn.Parameter, Tensor]) -> dict[str, dict[str, float]]:
        return measured(
            (view, 1 - group["lr"] * slot.rate * group["weight_decay"], before[parameter], now)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter in before
            for now in (full(parameter.data),)
            for slot in self._slots[parameter]
            for view in slot.parts
        )

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
        device = local(next(iter(self._slots))).device
        skipped = sum(getattr(self.statistics, "skipped", {}).values())
        return metrics | preconditioner_metrics(self._conditions(), self._failed(), skipped, self.ranks, device)

    def _conditions(self) -> Conditions:
        """Condition numbers of this rank's matrices."""
        conditions: Conditions = {}
        for parameter, slots in self._slots.items():
            for slot in slots if parameter in self.state else ():
                view, direction = slot.view, self.directions[slot.direction]
                state = self._saved_state(view)
                found = direction.condition_numbers(state, slot.place, self.statistics) if state else None  # type: ignore[arg-type]
                if found is not None:
                    columns = conditions.setdefault(view.role, [[], []])
                    for column, values in zip(columns, found, strict=True):
                        column.extend(values.tolist())
        return conditions

    def energy_factors(self) -> dict[int, Tensor]:
        """Energy factor of every layer at the last step; empty for an optimizer that has none."""
        for direction in self.directions.values():
            if isinstance(direction, EnergyScaled) and self.statistics is not None:
                return direction.energy_factors(self.statistics)  # type: ignore[arg-type]
        return {}

    def _failed(self) -> int | None:
        """Failed decompositions; None where nothing is decomposed."""
        counts = [
            int(value.sum())
            for state in self.state.values()
            for name, value in state.items()
            if name.rpartition(".")[2] == "failed"
        ]
        return sum(counts) if counts else None
