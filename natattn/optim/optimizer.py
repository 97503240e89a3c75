"""An optimizer that assigns a direction to each role: the one ``torch.optim.Optimizer`` behind every ``optim=``."""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from natattn.distributed.ranks import Ranks, full
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaled
from natattn.optim.matrix import ROLES, Matrix, Role, key_of
from natattn.optim.placebo import PlaceboStatistics
from natattn.optim.sharded import ShardedStep
from natattn.optim.update_metrics import Conditions, preconditioner_metrics, update_metrics

Batch = tuple[Direction, float, list[Matrix]]  # matrices that share a direction and a relative rate


class DirectionalOptimizer(torch.optim.Optimizer):
    """Applies to each matrix of a model the direction of its role.

    A parameter group holds parameters with the same directions, rates and weight decay; weight decay is for matrices
    only. ``group["lr"]`` is read at every step, so that learning-rate schedulers work as with any PyTorch optimizer;
    slices of a fused weight whose roles have other rates keep their ratio to it. The state of a slice is entered into
    ``state`` by ``state_dict()``; until then ``matrix.state`` holds it.

    Args:
        matrices: of every trainable parameter, from ``partition``.
        directions: by role, ``hidden`` or ``default``.
        learning_rates: by some of these keys, in place of ``learning_rate``.
        statistics: what directions that read attention are given, usually an ``AttentionProbe``.
        ranks: the processes that train the same parameters. Work that is not elementwise is split among them: each
            keeps the state of its own matrices and computes their updates for all. Parameters may be sharded
            (``fully_shard``).

    Raises: ValueError for a parameter that its direction cannot serve.
    """

    def __init__(
        self,
        matrices: list[Matrix],
        directions: Mapping[str, Direction],
        *,
        learning_rate: float,
        weight_decay: float,
        learning_rates: Mapping[str, float] | None = None,
        statistics: Statistics | PlaceboStatistics | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.directions = dict(directions)
        self.statistics: Any = statistics
        self.ranks = ranks or Ranks()
        self.steps = 0
        self.last_updates: dict[str, Any] = {}  # what ``measure_next_step`` measured, and at which step
        self.measuring = False
        self._matrices: dict[nn.Parameter, list[Matrix]] = {}
        # By the identity of a parameter group: the parameters that had gradients, and the batches of their matrices.
        self._batches: dict[int, tuple[list[nn.Parameter], list[Batch]]] = {}
        by_parameter: dict[nn.Parameter, list[Matrix]] = {}
        for matrix in matrices:
            by_parameter.setdefault(matrix.parameter, []).append(matrix)

        rates = learning_rates or {}
        groups: dict[object, dict[str, Any]] = {}
        for parameter, parts in by_parameter.items():
            decay = weight_decay if parameter.ndim == 2 else 0.0
            keys = [str(key_of(directions, part.role)) for part in parts]
            own_rates = [rates.get(str(key_of(rates, part.role)), learning_rate) for part in parts]
            group = {"params": [], "directions": keys, "lr": own_rates[0], "weight_decay": decay}
            groups.setdefault((*keys, *own_rates, decay), group)["params"].append(parameter)
            if len({*keys}) == len({*own_rates}) == 1 and directions[keys[0]].elementwise:
                # An elementwise direction is shown the parameter as it is stored.
                stored = replace(parts[0], dim=None, transposed=False, direction=keys[0], parts=tuple(parts), state={})
                self._matrices[parameter] = [stored]
            else:
                self._matrices[parameter] = [
                    replace(part, direction=key, rate=rate / own_rates[0], parts=(part,), state={})
                    for part, key, rate in zip(parts, keys, own_rates, strict=True)
                ]
        for matrix in self.matrices:
            directions[matrix.direction].check(matrix)
        super().__init__(list(groups.values()), {"lr": learning_rate, "weight_decay": weight_decay})
        self.sharded = ShardedStep(self.matrices, self.directions, self.ranks) if self.ranks.size > 1 else None

    @property
    def matrices(self) -> list[Matrix]:
        """All matrices that the directions are shown."""
        return [matrix for matrices in self._matrices.values() for matrix in matrices]

    def matrices_of(self, parameter: nn.Parameter) -> list[Matrix]:
        """Return the matrices of one parameter."""
        return self._matrices[parameter]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters in the order of their numbers in ``state_dict()``."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those without a matrix take the direction of ``param_group["role"]``, or the default.

        Weight decay is for matrices, unless the group sets it.

        Raises: ValueError for an unknown role, or if no direction serves such parameters in that role.
        """
        has_decay = "weight_decay" in param_group
        super().add_param_group(param_group)
        if not has_decay and all(parameter.ndim != 2 for parameter in param_group["params"]):
            param_group["weight_decay"] = 0.0
        role: Role | None = param_group.pop("role", None)
        key = "default" if role is None else key_of(self.directions, role) if role in ROLES else None
        added = []
        try:
            for number, parameter in enumerate(param_group["params"]):
                if parameter in self._matrices:
                    continue
                if key is None or key not in self.directions:
                    raise ValueError(f"role={role}: has no direction. Use {', '.join(self.directions)}")
                part = Matrix(f"added {len(self.param_groups)}.{number}", parameter, role or "vector")
                added.append(replace(part, direction=key, parts=(part,), state={}))
                self.directions[key].check(added[-1])
        except ValueError:
            self.param_groups.pop()
            raise
        for matrix in added:
            self._matrices[matrix.parameter] = [matrix]
            if self.sharded is not None:
                self.sharded.add(matrix)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self.one_step():
            step = self._step_matrices if self.sharded is None else self.sharded.step
            for group in self.param_groups:
                for direction, rate, matrices in self._batches_of(group):
                    rates = {"learning_rate": group["lr"] * rate, "weight_decay": group["weight_decay"]}
                    step(direction, matrices, self.statistics, **rates)
        return loss

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Context of one step: prepare the statistics, measure the updates if asked, count the step."""
        self._begin_step()
        before = self._snapshot() if self.measuring else None
        yield
        if before is not None:
            self.last_updates = {"step": self.steps, "roles": self._measured(before)}
            self.measuring = False
        self.steps += 1

    def prepare_state(self, matrix: Matrix) -> None:
        """Make the state of a matrix that has none yet."""
        matrix.state.update(self.directions[matrix.direction].initial_state(matrix.value))
        if matrix.dim is None:
            self.state[matrix.parameter] = matrix.state

    def state_dict(self) -> dict[str, Any]:
        """Return the state as every PyTorch optimizer does, with the number of steps and the state of a placebo."""
        for matrix in self.matrices:
            if matrix.state:
                named = {matrix.state_prefix + name: value for name, value in matrix.state.items()}
                self.state[matrix.parameter].update(named)
        state = super().state_dict()
        state["steps"] = self.steps
        state["last_updates"] = self.last_updates
        if isinstance(self.statistics, PlaceboStatistics):
            state["placebo"] = self.statistics.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a ``state_dict``, every tensor in the precision that it was saved in."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.steps = state_dict.get("steps", 0)
        self.last_updates = state_dict.get("last_updates", {})
        if isinstance(self.statistics, PlaceboStatistics):
            self.statistics.load_state_dict(state_dict["placebo"])
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(self.parameters(), numbers, strict=True):
            state = self.state[parameter] if number in state_dict["state"] else {}
            # torch casts floating-point state to the parameter's dtype: roots and averages are finer than bfloat16.
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    # Counts that decide what is computed stay on the host: reading them must not wait for the device.
                    device = torch.device("cpu") if name.endswith("host_step") else parameter.device
                    state[name] = value.to(device, copy=True)
            for matrix in self._matrices[parameter]:
                prefix = matrix.state_prefix
                own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
                matrix.state = own if prefix else state

    def __getstate__(self) -> dict[str, Any]:
        """Raise TypeError: a copy would step the original's parameters with statistics of the original's model."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled. Build one for the other model and load_state_dict()"
        )

    def holds_shard(self, parameter: nn.Parameter, value: Tensor) -> bool:
        """Return whether a value in the state of a parameter is this rank's shard of a full tensor."""
        return self.sharded is not None and self.sharded.holds_shard(self._matrices[parameter], value)

    def keeps(self, parameter: nn.Parameter, name: str) -> bool:
        """Return whether this rank keeps the entry ``name`` of the state of a parameter."""
        return self.sharded is None or self.sharded.keeps(self._matrices[parameter], name)

    def measure_next_step(self) -> None:
        """Measure the next step's updates by role, at the cost of a copy of the parameters."""
        self.measuring = True

    def energy_factors(self) -> dict[int, Tensor]:
        """Return the energy factor of every layer at the last step; empty if no direction has one."""
        for direction in self.directions.values():
            if isinstance(direction, EnergyScaled) and self.statistics is not None:
                return direction.energy_factors(self.statistics)
        return {}

    def metrics(self) -> dict[str, float]:
        """Return metrics of the last step by name.

        ``layer_i/energy_factor`` for directions that have one; by role, if that step was measured, ``update_rms`` (the
        root mean square of the change without weight decay) and ``update_to_weight``; by role ``condition`` and
        ``preconditioned_condition`` of the input factors, geometric means over matrices and heads; and
        ``failed_decompositions`` so far.
        """
        metrics = {f"layer_{layer}/energy_factor": float(factor) for layer, factor in self.energy_factors().items()}
        if self.last_updates.get("step") == self.steps - 1:
            for role, values in self.last_updates["roles"].items():
                metrics |= {f"{role}/{name}": value for name, value in values.items()}
        conditions: Conditions = {}
        failures: list[int] = []  # of this rank's matrices
        for matrix in self.matrices:
            if "failed" in matrix.state:
                failures.append(int(matrix.state["failed"].sum()))
            direction = self.directions[matrix.direction]
            numbers = direction.condition_numbers(matrix, self.statistics) if matrix.state else None
            if numbers is not None:
                columns = conditions.setdefault(matrix.role, [[], []])
                for column, values in zip(columns, numbers, strict=True):
                    column.extend(values.tolist())
        failed = sum(failures) if failures else None
        skipped = sum(getattr(self.statistics, "skipped", {}).values())
        device = next(iter(self._matrices)).device
        return metrics | preconditioner_metrics(conditions, failed, skipped, self.ranks, device)

    def _begin_step(self) -> None:
        """Prepare the statistics, after the last backward pass and before the first update."""
        if self.ranks.size > 1 and self.statistics is not None:
            self.statistics.reduce(self.ranks)
        if isinstance(self.statistics, PlaceboStatistics):
            quantities = {name: None for direction in self.directions.values() for name in direction.quantities}
            self.statistics.begin(self.steps, [name for name in quantities if name.endswith("energy")])

    def _batches_of(self, group: dict[str, Any]) -> list[Batch]:
        """Return the matrices of a group that have a gradient, by direction, rate and whether ranks split the work."""
        having = [parameter for parameter in group["params"] if parameter.grad is not None]
        known = self._batches.get(id(group))
        if known is not None and len(known[0]) == len(having) and all(map(operator.is_, known[0], having)):
            return known[1]
        batches: dict[tuple[str, float, bool], list[Matrix]] = {}
        for parameter in having:
            for matrix in self._matrices[parameter]:
                is_split = self.sharded is not None and self.sharded.is_split(matrix)
                batches.setdefault((matrix.direction, matrix.rate, is_split), []).append(matrix)
        prepared = [(self.directions[key], rate, matrices) for (key, rate, _), matrices in batches.items()]
        self._batches[id(group)] = having, prepared
        return prepared

    def _step_matrices(
        self, direction: Direction, matrices: list[Matrix], attention: Statistics | None, **rates: float
    ) -> None:
        """Step matrices of one direction, on a process of its own."""
        for matrix in matrices:
            parameter = matrix.parameter
            if matrix.dim is None and not matrix.transposed:  # what most are: no calls for them
                matrix.value, matrix.gradient = parameter, parameter.grad  # type: ignore[assignment]
            else:
                matrix.value = matrix.of(parameter.data)
                matrix.gradient = matrix.of(parameter.grad)  # type: ignore[arg-type]
            if not matrix.state:
                self.prepare_state(matrix)
        direction.step(matrices, attention, **rates)

    def _snapshot(self) -> dict[nn.Parameter, Tensor]:
        return {p: self._full_value(p).clone() for p in self.parameters() if p.grad is not None}

    def _full_value(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach() if self.sharded is None else full(parameter.detach())

    def _measured(self, before: dict[nn.Parameter, Tensor]) -> dict[str, dict[str, float]]:
        return update_metrics(
            (part, 1 - group["lr"] * matrix.rate * group["weight_decay"], before[parameter], after)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter in before
            for after in (self._full_value(parameter),)
            for matrix in self._matrices[parameter]
            for part in matrix.parts
        )
