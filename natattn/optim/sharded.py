"""An optimizer step split over ranks: each matrix has an owner that keeps its state and computes its update for all.

Expensive per-matrix work (Newton–Schulz, factorisations, eigenbases) is done once among all ranks, and momenta and
roots are stored once. Gradients must be equal on all ranks, or shards of one gradient. A single process does not use
this module.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from natattn.distributed.ranks import Ranks, full, is_sharded, local, shard_like
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.matrix import Matrix

BUCKET_ELEMENTS = 16 * 2**20  # of the updates that are exchanged at once


class ShardedStep:
    """The split of an optimizer's matrices among ranks.

    Args:
        matrices: all that the directions are shown.
        directions: by their keys in the optimizer's table.
        ranks: the processes that train the same parameters.
    """

    def __init__(self, matrices: Sequence[Matrix], directions: Mapping[str, Direction], ranks: Ranks) -> None:
        self.directions = directions
        self.ranks = ranks
        split = [matrix for matrix in matrices if self.is_split(matrix)]
        self._owners = dict(zip(split, owners([_shape(matrix) for matrix in split], ranks.size), strict=True))

    def add(self, matrix: Matrix) -> None:
        """Give a matrix that is added later an owner."""
        if self.is_split(matrix):
            self._owners[matrix] = len(self._owners) % self.ranks.size

    def is_split(self, matrix: Matrix) -> bool:
        """Return whether one rank computes the update for all; an elementwise direction needs its shard only."""
        is_cut = matrix.dim is not None and is_sharded(matrix.parameter)
        return is_cut or not self.directions[matrix.direction].elementwise

    def holds_shard(self, matrices: Sequence[Matrix], value: Tensor) -> bool:
        """Return whether a state value of the parameter of these matrices is this rank's shard of a full tensor."""
        split = any(self.is_split(matrix) for matrix in matrices)
        return is_sharded(matrices[0].parameter) and not split and value.ndim > 0

    def keeps(self, matrices: Sequence[Matrix], name: str) -> bool:
        """Return whether this rank keeps an entry in the state of the parameter of these matrices."""
        for matrix in matrices:
            if name.startswith(matrix.state_prefix) and self.is_split(matrix):
                return self._owners[matrix] == self.ranks.rank
        return True

    def step(
        self,
        direction: Direction,
        matrices: Sequence[Matrix],
        attention: Statistics | None,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """Step matrices of one direction, either all split or none."""
        if not self.is_split(matrices[0]):
            for matrix in matrices:
                matrix.value = matrix.of(local(matrix.parameter.data))
                matrix.gradient = matrix.of(local(matrix.parameter.grad))  # type: ignore[arg-type]
                matrix.state = matrix.state or direction.initial_state(matrix.value)
            direction.step(matrices, attention, learning_rate=learning_rate, weight_decay=weight_decay)
            return
        owned_by = [self._owners[matrix] for matrix in matrices]
        own: list[Matrix] = []
        gathered, last = None, None
        for matrix, owner in zip(matrices, owned_by, strict=True):
            if gathered is None or matrix.parameter is not last:
                gathered, last = full(matrix.parameter.grad), matrix.parameter  # type: ignore[arg-type]
            if owner == self.ranks.rank:
                matrix.gradient = matrix.of(gathered)
                matrix.state = matrix.state or direction.initial_state(matrix.gradient)
                own.append(matrix)
        updates = dict(zip(own, direction.updates(own, attention), strict=True)) if own else {}
        numbered = {number: updates[matrix] for number, matrix in enumerate(matrices) if matrix in updates}
        like = local(matrices[0].parameter.data)
        for number, update in exchanged(numbered, [_shape(m) for m in matrices], owned_by, like, self.ranks):
            _apply(matrices[number], update, learning_rate, weight_decay)


def owners(shapes: Sequence[Sequence[int]], size: int) -> list[int]:
    """Return the rank that owns each matrix: the largest first, each to the rank with the least work.

    The cost of a matrix is rows · columns · min(rows, columns), which orthogonalising and decomposing grow with.
    """
    costs = [shape[0] * shape[-1] * min(shape[0], shape[-1]) for shape in shapes]
    loads = [0] * size
    owner_of = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        owner_of[number] = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[owner_of[number]] += costs[number]
    return owner_of


def exchanged(
    updates: dict[int, Tensor], shapes: Sequence[torch.Size], owned_by: Sequence[int], like: Tensor, ranks: Ranks
) -> Iterator[tuple[int, Tensor]]:
    """Yield (number, update) of every matrix, in order, from those that each rank has computed.

    Args:
        updates: of this rank's matrices, by number.
        shapes, owned_by: of all matrices.
        like: a tensor with the dtype and the device of the updates.
    """
    for numbers in _buckets(shapes):
        counts = [sum(shapes[n].numel() for n in numbers if owned_by[n] == rank) for rank in range(ranks.size)]
        if ranks.size * max(counts) > 2 * sum(counts):  # few owners among many ranks: gathering would be mostly padding
            for number in numbers:
                owner = owned_by[number]
                is_own = owner == ranks.rank
                update = updates.pop(number).contiguous() if is_own else like.new_empty(shapes[number])
                source = owner if ranks.group is None else dist.get_global_rank(ranks.group, owner)
                dist.broadcast(update, src=source, group=ranks.group)
                yield number, update
            continue
        sent = like.new_zeros(max(counts))
        start = 0
        for number in numbers:
            if owned_by[number] == ranks.rank:
                sent[start : start + shapes[number].numel()] = updates.pop(number).reshape(-1)
                start += shapes[number].numel()
        received = like.new_empty(ranks.size * len(sent))
        dist.all_gather_into_tensor(received, sent, group=ranks.group)
        starts = [rank * len(sent) for rank in range(ranks.size)]
        for number in numbers:
            rank, count = owned_by[number], shapes[number].numel()
            yield number, received[starts[rank] : starts[rank] + count].view(shapes[number])
            starts[rank] += count


def _buckets(shapes: Sequence[torch.Size]) -> Iterator[list[int]]:
    """Yield numbers of matrices in order, in buckets of at most BUCKET_ELEMENTS elements (or one matrix)."""
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


def _shape(matrix: Matrix) -> torch.Size:
    return matrix.of(torch.empty(matrix.parameter.shape, device="meta")).shape


def _apply(matrix: Matrix, update: Tensor, learning_rate: float, weight_decay: float) -> None:
    """Set θ ← (1 − learning_rate · weight_decay) θ − learning_rate · u, on a full matrix or on this rank's shard."""
    parameter, decay = matrix.parameter.data, 1 - learning_rate * weight_decay
    if not is_sharded(parameter):
        matrix.of(parameter).mul_(decay).add_(update, alpha=-learning_rate)
        return
    step, kept = update.new_zeros(parameter.shape), update.new_ones(parameter.shape)
    matrix.of(step).copy_(update)
    matrix.of(kept).fill_(decay)
    local(parameter).mul_(shard_like(kept, parameter)).sub_(shard_like(step, parameter), alpha=learning_rate)
