"""One step of several optimizers of the same kind on stacked models: every direction sees all of them at once.

What is batched over the matrices of one model (fused Adam, Newton–Schulz, decompositions) is then batched over the
matrices of all models. Each optimizer keeps its own state, steps and statistics, as if it had stepped alone.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natattn.optim.directions.base import Direction
from natattn.optim.matrix import Matrix
from natattn.optim.optimizer import DirectionalOptimizer

_STRIDE = 1 << 20  # more layers than a model has


@dataclass(frozen=True, eq=False)
class _Batch:
    """The matrices that share a parameter group, a direction and a relative rate.

    Attributes:
        matrices: by stack, what the direction is shown: the stack itself if it is elementwise, otherwise the matrix of
            every model.
    """

    group: int
    direction: Direction
    rate: float
    matrices: list[tuple[nn.Parameter, list[Matrix]]]


class JointOptimizer:
    """Steps several ``DirectionalOptimizer`` of one configuration together.

    Args:
        optimizers: one per model, built alike; their parameters are views into the stacks.
        stacks: by name, the stacked parameters [S, ...]; a stack with a gradient has that of every model.

    The optimizers must not load a state afterwards; build another joint optimizer from them to continue from it.
    """

    def __init__(self, optimizers: Sequence[DirectionalOptimizer], stacks: Mapping[str, nn.Parameter]) -> None:
        self.optimizers = list(optimizers)
        sources = [optimizer.statistics for optimizer in optimizers]
        self.statistics = None if sources[0] is None else JointStatistics(sources)
        by_address = {stack.data_ptr(): stack for stack in stacks.values()}
        self._parameters: dict[nn.Parameter, tuple[nn.Parameter, ...]] = {}  # of each model, by their stack
        self._batches: list[_Batch] = []
        for number in range(len(optimizers[0].param_groups)):
            batches: dict[tuple[str, float], _Batch] = {}
            for parameters in zip(*(optimizer.param_groups[number]["params"] for optimizer in optimizers), strict=True):
                stack = by_address[parameters[0].data_ptr()]
                self._parameters[stack] = parameters
                owned = [optimizer.matrices_of(own) for optimizer, own in zip(optimizers, parameters, strict=True)]
                for matrices in zip(*owned, strict=True):
                    key, rate = matrices[0].direction, matrices[0].rate
                    batch = batches.setdefault((key, rate), _Batch(number, optimizers[0].directions[key], rate, []))
                    batch.matrices.append((stack, self._shown(stack, matrices, batch.direction)))
            self._batches.extend(batches.values())

    @torch.no_grad()
    def step(self) -> None:
        """Take one step on every stacked parameter that has a gradient, at the rates of the first optimizer."""
        with contextlib.ExitStack() as stack:
            if any(optimizer.measuring for optimizer in self.optimizers):
                stack.enter_context(self._own_gradients())
            for optimizer in self.optimizers:
                stack.enter_context(optimizer.one_step())
            if self.statistics is not None:
                self.statistics.begin()
            for batch in self._batches:
                self._step(batch)

    def release(self) -> None:
        """Give every optimizer a state of its own."""
        for optimizer in self.optimizers:
            for matrix in optimizer.matrices:
                matrix.state.update({name: value.clone() for name, value in matrix.state.items()})

    def _shown(self, stack: nn.Parameter, matrices: Sequence[Matrix], direction: Direction) -> list[Matrix]:
        """Return the matrices of every model as the direction is shown them, with one state for both.

        An elementwise direction is shown the stack and a stacked state, of which the optimizers' states become views;
        a value that is one number per parameter (Adam's step) is shared.
        """
        for optimizer, matrix in zip(self.optimizers, matrices, strict=True):
            if not matrix.state:
                matrix.value = matrix.of(matrix.parameter.data)
                optimizer.prepare_state(matrix)
        first = matrices[0]
        dim = None if first.dim is None else first.dim + 1
        joint = replace(first, parameter=stack, dim=dim, state={})
        joint.value = joint.of(stack.data)
        if not direction.elementwise:
            shown = [self._named(replace(matrix), number) for number, matrix in enumerate(matrices)]
            for matrix, value in zip(shown, joint.value.unbind(), strict=True):
                matrix.value, matrix.dim, matrix.parameter = value, dim, stack
            return shown
        for name, value in first.state.items():
            joint.state[name] = torch.stack([matrix.state[name] for matrix in matrices]) if value.ndim else value
            parts = joint.state[name].unbind() if value.ndim else [value] * len(matrices)
            for matrix, part in zip(matrices, parts, strict=True):
                matrix.state[name] = part
        return [joint]

    def _named(self, matrix: Matrix, number: int) -> Matrix:
        """Return a matrix of model ``number`` with the layer and module that ``JointStatistics`` gives it."""
        if self.statistics is None:
            return matrix
        layer = None if matrix.layer is None else number * _STRIDE + matrix.layer
        return replace(matrix, layer=layer, module=f"{number}:{matrix.module}" if matrix.module else "")

    def _step(self, batch: _Batch) -> None:
        chosen: list[Matrix] = []
        for stack, matrices in batch.matrices:
            if stack.grad is None:
                continue
            gradient = matrices[0].of(stack.grad)
            gradients = [gradient] if batch.direction.elementwise else gradient.unbind()
            for matrix, part in zip(matrices, gradients, strict=True):
                matrix.gradient = part
            chosen.extend(matrices)
        if not chosen:
            return
        group = self.optimizers[0].param_groups[batch.group]
        attention: Any = self.statistics
        if batch.direction.elementwise and attention is not None:
            attention = attention.stacked
        batch.direction.step(
            chosen, attention, learning_rate=group["lr"] * batch.rate, weight_decay=group["weight_decay"]
        )

    @contextlib.contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """Put the gradients on the models' own parameters, where a measurement looks for what is about to change."""
        changing = [(stack.grad, own) for stack, own in self._parameters.items() if stack.grad is not None]
        for gradient, parameters in changing:
            for parameter, part in zip(parameters, gradient.unbind(), strict=True):
                parameter.grad = part
        yield
        for _, parameters in changing:
            for parameter in parameters:
                parameter.grad = None


class JointStatistics:
    """The statistics of several models: layer l of model s has the number s·2²⁰ + l, module m the name "s:m".

    Attributes:
        stacked: the same for directions that are shown stacks: layers have their own numbers, energies are [S].
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = list(sources)
        self.stacked = _StackedStatistics(self)
        self._energies: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Start a step: forget what was read in the last one."""
        self._energies.clear()

    @property
    def layers(self) -> list[int]:
        """Observed layers of all models."""
        return [number * _STRIDE + layer for number, source in enumerate(self.sources) for layer in source.layers]

    @property
    def recorded_layers(self) -> list[int]:
        """Recorded layers of all models."""
        recorded = enumerate(source.recorded_layers for source in self.sources)
        return [number * _STRIDE + layer for number, layers in recorded for layer in layers]

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """See ``Statistics``; read once in a step."""
        if layer not in self._energies:
            self._energies[layer] = self._read("mean_absolute_energy", layer)
        return self._energies[layer]

    def mean_energy(self, layer: int) -> Tensor:
        """See ``FactorStatistics``."""
        return self._read("mean_energy", layer)

    def attention_distance(self, layer: int) -> Tensor:
        """See ``FactorStatistics``."""
        return self._read("attention_distance", layer)

    def average(self, owner: str | int, name: str) -> Tensor | None:
        """See ``FactorStatistics``."""
        if isinstance(owner, str):
            number, _, module = owner.partition(":")
            average: Tensor | None = self.sources[int(number)].average(module, name)
            return average
        model, layer = divmod(owner, _STRIDE)
        average = self.sources[model].average(layer, name)
        return average

    def _read(self, quantity: str, code: int) -> Tensor:
        model, layer = divmod(code, _STRIDE)
        value: Tensor = getattr(self.sources[model], quantity)(layer)
        return value


class _StackedStatistics:
    """See ``JointStatistics.stacked``."""

    def __init__(self, joint: JointStatistics) -> None:
        self._joint = joint

    @property
    def layers(self) -> list[int]:
        layers: list[int] = self._joint.sources[0].layers
        return layers

    @property
    def recorded_layers(self) -> list[int]:
        layers: list[int] = self._joint.sources[0].recorded_layers
        return layers

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Return the energies of every model, [S]."""
        count = len(self._joint.sources)
        return torch.stack([self._joint.mean_absolute_energy(number * _STRIDE + layer) for number in range(count)])
