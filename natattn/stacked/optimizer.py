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

from natattn.optim.directions.base import Direction, Place, State, Statistics
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
                direction = optimizers[0].directions[key]
                kind = _ElementwiseBatch if direction.elementwise else _Batch
                self._batches.append(kind(number, direction, rate, members))
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
            if self.statistics is not None:
                self.statistics.begin()
            for batch in self._batches:
                batch.step(self.optimizers, self.statistics)

    def release(self) -> None:
        """Give every optimizer a state of its own."""
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                state.update({name: value.clone() for name, value in state.items()})

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
    """One view of a stacked parameter: what the directions are shown of it."""

    stack: torch.nn.Parameter
    views: list[ParameterView]  # model by model
    places: list[Place]  # as ``JointStatistics`` calls them

    def of(self, stacked: Tensor) -> Tensor:
        """The view of every model's part of a tensor that is shaped like the stack, [S, ...]."""
        view = self.views[0]
        part = stacked if view.dim is None else stacked.narrow(view.dim + 1, view.start, view.stop - view.start)
        return part.mT if view.transposed else part


class _Batch:
    """All views that share a parameter group, a direction and a rate, shown to the direction matrix by matrix."""

    def __init__(self, group: int, direction: Direction, rate: float, members: list[_Member]) -> None:
        self.group = group
        self.direction = direction
        self.rate = rate
        self.members = members
        self._parameters = [self.shown(member, member.stack.data) for member in members]
        self._states: list[list[State]] = []

    def shown(self, member: _Member, stacked: Tensor) -> list[Tensor]:
        """A tensor like the stack, as the direction is shown it."""
        return list(member.of(stacked).unbind())

    def places(self, member: _Member) -> list[Place]:
        """Of what is shown."""
        return member.places

    def statistics(self, statistics: "JointStatistics | None") -> Statistics | None:
        """In the form that belongs to what is shown."""
        return statistics

    def take_states(self, optimizers: Sequence[DirectionalOptimizer]) -> None:
        """The optimizers' own states: where a view is a whole parameter, the very dictionary."""
        for member in self.members:
            states = []
            for optimizer, view in zip(optimizers, member.views, strict=True):
                own = optimizer.state_of(view, self.direction)
                if not view.state_prefix:
                    optimizer.keep_state(view, own)
                    own = optimizer.state[view.parameter]
                states.append(own)
            self._states.append(states)

    def keep_states(self, optimizers: Sequence[DirectionalOptimizer], index: int) -> None:
        """Give the optimizers what has changed in the states of a member."""
        for optimizer, view, state in zip(optimizers, self.members[index].views, self._states[index], strict=True):
            if view.state_prefix:
                optimizer.keep_state(view, state)

    def step(self, optimizers: Sequence[DirectionalOptimizer], statistics: "JointStatistics | None") -> None:
        """The direction's step on all that have a gradient."""
        found = [(index, member.stack.grad) for index, member in enumerate(self.members)]
        chosen = [(index, gradient) for index, gradient in found if gradient is not None]
        if not chosen:
            return
        group = optimizers[0].param_groups[self.group]
        self.direction.step_(
            [parameter for index, _ in chosen for parameter in self._parameters[index]],
            [part for index, gradient in chosen for part in self.shown(self.members[index], gradient)],
            [state for index, _ in chosen for state in self._states[index]],
            [place for index, _ in chosen for place in self.places(self.members[index])],
            self.statistics(statistics),
            learning_rate=group["lr"] * self.rate,
            weight_decay=group["weight_decay"],
        )
        for index, _ in chosen:
            self.keep_states(optimizers, index)


class _ElementwiseBatch(_Batch):
    """Of a direction that does not care how parameters are cut: it is shown the stacks themselves, and their states.

    The optimizers' states are views of the stacked ones; what is one number for a parameter (Adam's step) is shared.
    """

    def shown(self, member: _Member, stacked: Tensor) -> list[Tensor]:
        """The stack."""
        return [member.of(stacked)]

    def places(self, member: _Member) -> list[Place]:
        """That in the first model, by whose numbers the stacked statistics go."""
        return member.places[:1]

    def statistics(self, statistics: "JointStatistics | None") -> Statistics | None:
        """One number for each model."""
        return None if statistics is None else statistics.stacked

    def take_states(self, optimizers: Sequence[DirectionalOptimizer]) -> None:
        """Stack the optimizers' states and give them views."""
        for member in self.members:
            views = list(zip(optimizers, member.views, strict=True))
            owns = [optimizer.state_of(view, self.direction) for optimizer, view in views]
            state = {}
            for name, first in owns[0].items():
                whole = first.ndim > 0
                state[name] = torch.stack([own[name] for own in owns]) if whole else first
                for own, part in zip(owns, state[name].unbind() if whole else [first] * len(owns), strict=True):
                    own[name] = part
            for (optimizer, view), own in zip(views, owns, strict=True):
                optimizer.keep_state(view, own)
            self._states.append([state])

    def keep_states(self, optimizers: Sequence[DirectionalOptimizer], index: int) -> None:
        """Nothing: they change in place."""


class JointStatistics:
    """The statistics of several models: layer l of model s has the number s·2²⁰ + l, module m the name "s:m".

    Attributes:
        stacked: the same for directions that are shown stacks: a layer's number is its own, its energies are [S].
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = list(sources)
        self.stacked = _StackedStatistics(self)
        self._energies: dict[int, Tensor] = {}

    def begin(self) -> None:
        """A new step: forget what was read in the last."""
        self._energies.clear()

    def named(self, place: Place, number: int) -> Place:
        """A place in model ``number`` as it is called here."""
        layer = None if place.layer is None else number * _STRIDE + place.layer
        return replace(place, layer=layer, module=f"{number}:{place.module}" if place.module else "")

    @property
    def layers(self) -> list[int]:
        """Of all models."""
        return [number * _STRIDE + layer for number, each in enumerate(self.sources) for layer in each.layers]

    @property
    def recorded_layers(self) -> list[int]:
        """Of all models."""
        return [number * _STRIDE + layer for number, each in enumerate(self.sources) for layer in each.recorded_layers]

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """See ``Statistics``; read once in a step."""
        if layer not in self._energies:
            source, own = self._owner(layer)
            self._energies[layer] = source.mean_absolute_energy(own)
        return self._energies[layer]

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

    def _owner(self, code: int) -> tuple[Any, int]:
        number, layer = divmod(code, _STRIDE)
        return self.sources[number], layer


class _StackedStatistics:
    """See ``JointStatistics.stacked``."""

    def __init__(self, joint: JointStatistics) -> None:
        self._joint = joint

    @property
    def layers(self) -> list[int]:
        """Of every model."""
        layers: list[int] = self._joint.sources[0].layers
        return layers

    @property
    def recorded_layers(self) -> list[int]:
        """Those that the last recorded step has seen in every model."""
        layers: list[int] = self._joint.sources[0].recorded_layers
        return layers

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Of every model, [S]."""
        count = len(self._joint.sources)
        return torch.stack([self._joint.mean_absolute_energy(number * _STRIDE + layer) for number in range(count)])
