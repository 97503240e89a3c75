"""Matrix work split over ranks: every matrix has an owner that keeps its state and computes its update for all.

What costs more than a pass over the elements (Newton–Schulz, factorisations, eigenbases) is done once among all ranks,
and momenta and roots exist once. Gradients must be equal on all ranks, or be parts of one gradient.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from natattn.ranks import Ranks

BUCKET_ELEMENTS = 16 * 2**20  # of the updates that are exchanged at once


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
