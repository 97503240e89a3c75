"""One step of several optimizers of the same kind, whose models are stacked: every direction sees all of them at once.

What is batched over the matrices of one model (fused Adam, Newton–Schulz, decompositions) is then batched over the
matrices of all. Each optimizer keeps its own state, steps and statistics, as if it had stepped alone.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from natattn.optim.directions.base import Direction, Place, State
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import ParameterView

_STRIDE = 1 << 20  # more layers than a model has


class JointOptimizer:
    """Steps several ``DirectionalOptimizer`` of one configuration together.

    Args:
        optimizers: one of each model, built alike; their parameters are views into the stacks.
        stacks: by name, the stacked parameters [S, ...]; where a stack has a gradient it is every model's.

    The optimizers must not load a state afterwards; a joint optimizer that is built of them then goes on from it.
    """

    def __init__(self, optimizers: Sequence[DirectionalOptimizer], stacks: Mapping[str, torch.nn.Parameter]) -> None:
        self.optimizers = list(optimizers)
        sources = [optimizer.statistics for optimizer in optimizers]
        self.statistics = None if sources[0] is None else JointStatistics(sources)
        by_address = {stack.data_ptr(): stack for stack in stacks.values()}
        self._batches: list[_Batch] = []
        for number, group in enumerate(optimizers[0].param_groups):
            batches: dict[tuple[str, float], list[_Member]] = {}
            for index, parameter in enumerate(group["params"]):
                stack = by_address[parameter.data_ptr()]
                for place, slot in enumerate(optimizers[0].slots_of(parameter)):
                    found = [
                        optimizer.slots_of(optimizer.param_groups[number]["params"][index])[place]
                        for optimizer in optimizers
                    ]
                    member = _Member(stack, [each.view for each in found], self._places([each.place for each in found]))
                    batches.setdefault((slot.direction, slot.rate), []).append(member)
            for (key, rate), members in batches.items():
                self._batches.append(_Batch(number, optimizers[0].directions[key], rate, members))
        for batch in self._batches:
            batch.take_states(self.optimizers)

    @torch.no_grad()
    def step(self) -> None:
        """One step on every stacked parameter that has a gradient; the rates are those of the first optimizer."""
        with contextlib.ExitStack() as stack:
            if any(optimizer.measuring for optimizer in self.optimizers):
                stack.enter_context(self._own_gradients())
            for optimizer in self.optimizers:
                stack.enter_context(optimizer.one_step())
            for batch in self._batches:
                batch.step(self.optimizers, self.statistics)

    @contextlib.contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """The gradients on the models' own parameters, where a measurement looks for what is about to change."""
        members = [member for batch in self._batches for member in batch.members if member.stack.grad is not None]
        for member in members:
            for view, part in zip(member.views, member.stack.grad.unbind(), strict=True):  # type: ignore[union-attr]
                view.parameter.grad = part
        yield
        for member in members:
            for view in member.views:
                view.parameter.grad = None

    def _places(self, places: list[Place]) -> list[Place]:
        if self.statistics is None:
            return places
        return [self.statistics.named(place, number) for number, place in enumerate(places)]


@dataclass(frozen=True, eq=False)
class _Member:
    """One view of a stacked parameter: what the directions are shown of it, model by model."""

    stack: torch.nn.Parameter
    views: list[ParameterView]
    places: list[Place]

    def of(self, stacked: Tensor) -> Sequence[Tensor]:
        """The view of every model's part of a tensor that is shaped like the stack."""
        view = self.views[0]
        part = stacked if view.dim is None else stacked.narrow(view.dim + 1, view.start, view.stop - view.start)
        return (part.mT if view.transposed else part).unbind()


class _Batch:
    """All views that share a parameter group, a direction and a rate."""

    def __init__(self, group: int, direction: Direction, rate: float, members: list[_Member]) -> None:
        self.group = group
        self.direction = direction
        self.rate = rate
        self.members = members
        self._parameters = [list(member.of(member.stack.data)) for member in members]
        self._states: list[list[State]] = []

    def take_states(self, optimizers: Sequence[DirectionalOptimizer]) -> None:
        """The optimizers' own states: where a view is a whole parameter, the very dictionary."""
        for member in self.members:
            states = []
            for optimizer, view in zip(optimizers, member.views, strict=True):
                own = optimizer.state_of(view, self.direction)
                if not view.state_prefix:
                    optimizer.state[view.parameter].update(own)
                    own = optimizer.state[view.parameter]
                states.append(own)
            self._states.append(states)

    def step(self, optimizers: Sequence[DirectionalOptimizer], statistics: "JointStatistics | None") -> None:
        """The direction's step on all of them."""
        chosen = [index for index, member in enumerate(self.members) if member.stack.grad is not None]
        if not chosen:
            return
        group = optimizers[0].param_groups[self.group]
        self.direction.step_(
            [parameter for index in chosen for parameter in self._parameters[index]],
            [part for index in chosen for part in self.members[index].of(self.members[index].stack.grad)],  # type: ignore[arg-type]
            [state for index in chosen for state in self._states[index]],
            [place for index in chosen for place in self.members[index].places],
            statistics,
            learning_rate=group["lr"] * self.rate,
            weight_decay=group["weight_decay"],
        )
        for index in chosen:
            for optimizer, view, state in zip(optimizers, self.members[index].views, self._states[index], strict=True):
                if view.state_prefix:
                    optimizer.keep_state(view, state)


class JointStatistics:
    """The statistics of several models: layer l of model s has the number s·2²⁰ + l, module m the name "s:m"."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = list(sources)

    def named(self, place: Place, number: int) -> Place:
        """A place in model ``number`` as it is called here."""
        layer = None if place.layer is None else number * _STRIDE + place.layer
        return replace(place, layer=layer, module=f"{number}:{place.module}" if place.module else "")

    @property
    def layers(self) -> list[int]:
        """Of all models."""
        return [self._code(number, layer) for number, each in enumerate(self.sources) for layer in each.layers]

    @property
    def recorded_layers(self) -> list[int]:
        """Of all models."""
        return [self._code(number, layer) for number, each in enumerate(self.sources) for layer in each.recorded_layers]

    @property
    def captures(self) -> int:
        """Alike in all."""
        captures: int = self.sources[0].captures
        return captures

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """See ``Statistics``."""
        source, own = self._owner(layer)
        energy: Tensor = source.mean_absolute_energy(own)
        return energy

    def mean_energy(self, layer: int) -> Tensor:
        """See ``FactorStatistics``."""
        source, own = self._owner(layer)
        energy: Tensor = source.mean_energy(own)
        return energy

    def attention_distance(self, layer: int) -> Tensor:
        """See ``FactorStatistics``."""
        source, own = self._owner(layer)
        distance: Tensor = source.attention_distance(own)
        return distance

    def average(self, owner: str | int, name: str) -> Tensor | None:
        """See ``FactorStatistics``."""
        if isinstance(owner, str):
            number, _, module = owner.partition(":")
            found: Tensor | None = self.sources[int(number)].average(module, name)
            return found
        source, own = self._owner(owner)
        found = source.average(own, name)
        return found

    def _code(self, number: int, layer: int) -> int:
        return number * _STRIDE + layer

    def _owner(self, code: int) -> tuple[Any, int]:
        number, layer = divmod(code, _STRIDE)
        return self.sources[number], layer
