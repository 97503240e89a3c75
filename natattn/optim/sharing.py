"""Matrix work split over ranks: every matrix has an owner that keeps its state and computes its update for all.

What costs more than a pass over the elements (Newton–Schulz, factorisations, eigenbases) is done once among all ranks,
and momenta and roots exist once. Gradients must be equal on all ranks, or be parts of one gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from natattn.distributed.ranks import Ranks, full, is_sharded, local, shard_like
from natattn.optim.directions.base import Direction, State
from natattn.optim.partition import ParameterView
from natattn.optim.slots import Slot

BUCKET_ELEMENTS = 16 * 2**20  # of the updates that are exchanged at once


class ShardedStep:
    """Which matrices of an optimizer are split, and among whom.

    Args:
        slots: all that the directions are shown.
        ranks: the processes that train the same parameters.
    """

    def __init__(self, slots: Sequence[Slot], directions: Mapping[str, Direction], ranks: Ranks) -> None:
        self.directions = directions
        self.ranks = ranks
        split = [slot for slot in slots if self.is_split(slot)]
        found = owners([slot.shape for slot in split], ranks.size)
        self._owners = {_address(slot): rank for slot, rank in zip(split, found, strict=True)}

    def add(self, slot: Slot) -> None:
        """Give one that came later an owner."""
        if self.is_split(slot):
            self._owners[_address(slot)] = len(self._owners) % self.ranks.size

    def is_split(self, slot: Slot) -> bool:
        """Whether one rank computes the update for all; an elementwise direction needs no more than a part."""
        cut = slot.view.dim is not None and is_sharded(slot.view.parameter)
        return self.ranks.size > 1 and (cut or not self.directions[slot.direction].elementwise)

    def holds_part(self, slots: Sequence[Slot], value: Tensor) -> bool:
        """Whether such a value in the state of the parameter of these slots is this rank's part of a whole one."""
        split = any(self.is_split(slot) for slot in slots)
        return is_sharded(slots[0].view.parameter) and not split and value.ndim > 0

    def keeps(self, slots: Sequence[Slot], name: str) -> bool:
        """Whether an entry in the state of the parameter of these slots is kept on this rank."""
        for slot in slots:
            if name.startswith(slot.view.state_prefix) and self.is_split(slot):
                return self._owners[_address(slot)] == self.ranks.rank
        return True

    def step(
        self,
        keeper: "StateKeeper",
        direction: Direction,
        slots: list[Slot],
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """The step of matrices whose owners compute their updates for all ranks."""
        owned_by = [self._owners[_address(slot)] for slot in slots]
        own: dict[int, Tensor] = {}
        gathered = None
        for number, slot in enumerate(slots):
            if gathered is None or slot.view.parameter is not slots[number - 1].view.parameter:
                gathered = full(slot.view.parameter.grad)  # type: ignore[arg-type]
            if owned_by[number] == self.ranks.rank:
                own[number] = slot.view.of(gathered)
        views, places = [slots[n].view for n in own], [slots[n].place for n in own]
        states = [
            keeper.state_of(view, direction, gradient) for view, gradient in zip(views, own.values(), strict=True)
        ]
        found = direction.updates(list(own.values()), states, places, keeper.statistics) if own else []
        keeper.keep_states(views, states)
        like = local(slots[0].view.parameter.data)
        updates = dict(zip(own, found, strict=True))
        for number, update in exchanged(updates, [slot.shape for slot in slots], owned_by, like, self.ranks):
            _apply(slots[number].view, update, learning_rate, weight_decay)


class StateKeeper(Protocol):
    """What a shared step needs of its optimizer."""

    statistics: Any

    def state_of(self, view: ParameterView, direction: Direction, like: Tensor | None = None) -> State:
        """A view's state."""

    def keep_states(self, views: list[ParameterView], states: list[State]) -> None:
        """Enter views' states."""


def _address(slot: Slot) -> tuple[nn.Parameter, str]:
    """What tells the matrices of an optimizer apart."""
    return slot.view.parameter, slot.view.state_prefix


def owners(shapes: Sequence[Sequence[int]], size: int) -> list[int]:
    """The rank that owns each matrix: the largest first, each to the rank with least to do.

    The cost of a matrix is rows · columns · min(rows, columns), which orthogonalising and decomposing grow with.
    """
    costs = [shape[0] * shape[-1] * min(shape[0], shape[-1]) for shape in shapes]
    loads = [0] * size
    found = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        found[number] = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[found[number]] += costs[number]
    return found


def exchanged(
    updates: dict[int, Tensor], shapes: Sequence[torch.Size], owned_by: Sequence[int], like: Tensor, ranks: Ranks
) -> Iterator[tuple[int, Tensor]]:
    """(number, update) of every matrix, in order, from those that each rank has computed.

    Args:
        updates: of this rank's matrices, by number.
        shapes, owned_by: of all matrices.
        like: has the dtype and the device of the updates.
    """
    for numbers in _buckets(shapes):
        counts = [sum(shapes[n].numel() for n in numbers if owned_by[n] == rank) for rank in range(ranks.size)]
        if ranks.size * max(counts) > 2 * sum(counts):  # few owners among many ranks: most of a gathering is padding
            yield from ((number, _from_owner(updates, shapes, owned_by, number, like, ranks)) for number in numbers)
            continue
        sent = like.new_zeros(max(counts))
        place = 0
        for number in numbers:
            if owned_by[number] == ranks.rank:
                sent[place : place + shapes[number].numel()] = updates.pop(number).reshape(-1)
                place += shapes[number].numel()
        received = like.new_empty(ranks.size * len(sent))
        dist.all_gather_into_tensor(received, sent, group=ranks.group)
        places = [rank * len(sent) for rank in range(ranks.size)]
        for number in numbers:
            rank, count = owned_by[number], shapes[number].numel()
            yield number, received[places[rank] : places[rank] + count].view(shapes[number])
            places[rank] += count


def _from_owner(
    updates: dict[int, Tensor],
    shapes: Sequence[torch.Size],
    owned_by: Sequence[int],
    number: int,
    like: Tensor,
    ranks: Ranks,
) -> Tensor:
    """One matrix's update, told by its owner."""
    owner = owned_by[number]
    update = updates.pop(number).contiguous() if owner == ranks.rank else like.new_empty(shapes[number])
    source = owner if ranks.group is None else dist.get_global_rank(ranks.group, owner)
    dist.broadcast(update, src=source, group=ranks.group)
    return update


def _buckets(shapes: Sequence[torch.Size]) -> Iterator[list[int]]:
    """Numbers of matrices in order, each bucket as full as may be."""
    bucket: list[int] = []
    filled = 0
    for number, shape in enumerate(shapes):
        if bucket and filled + shape.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, filled = [], 0
        bucket.append(number)
        filled += shape.numel()
    if bucket:
        yield bucket


def _apply(view: ParameterView, update: Tensor, learning_rate: float, weight_decay: float) -> None:
    """θ ← (1 − learning_rate · weight_decay) θ − learning_rate · u, of a whole view or of this rank's part of it."""
    parameter, decay = view.parameter.data, 1 - learning_rate * weight_decay
    if not is_sharded(parameter):
        view.of(parameter).mul_(decay).add_(update, alpha=-learning_rate)
        return
    step, kept = update.new_zeros(parameter.shape), update.new_ones(parameter.shape)
    view.of(step).copy_(update)
    view.of(kept).fill_(decay)
    local(parameter).mul_(shard_like(kept, parameter)).sub_(shard_like(step, parameter), alpha=learning_rate)
