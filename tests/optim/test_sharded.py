"""Matrix work split over ranks: ownership, and the exchange of updates."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from natattn.distributed.ranks import Ranks
from natattn.optim import sharded
from natattn.optim.sharded import exchanged, owners

RANKS = 3
# Many small matrices are gathered; one large matrix among many ranks is broadcast by its owner.
CASES = {"many": [(4, 6)] * 7 + [(2, 3)] * 2, "one": [(8, 8)], "uneven": [(16, 16), (2, 2), (3, 5)]}


def _update(case: str, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(CASES[case][number], generator=generator)


def _rank(rank: int, folder: str, bucket: int) -> None:
    torch.set_num_threads(1)
    sharded.BUCKET_ELEMENTS = bucket
    store = torch.distributed.FileStore(os.path.join(folder, "store"), RANKS)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    ranks, right = Ranks.of_group(), {}
    for case, listed in CASES.items():
        shapes = [torch.Size(shape) for shape in listed]
        owned_by = owners(shapes, RANKS)
        own = {n: _update(case, n) for n in range(len(shapes)) if owned_by[n] == rank}
        found = list(exchanged(own, shapes, owned_by, torch.zeros(()), ranks))
        right[case] = [n for n, _ in found] == list(range(len(shapes))) and all(
            torch.equal(update, _update(case, n)) for n, update in found
        )
    right["gather"] = ranks.gather({"rank": rank, "text": "é" * rank}) == [
        {"rank": n, "text": "é" * n} for n in range(RANKS)
    ]
    sums = ranks.sum([torch.full((2,), float(rank)), torch.tensor(rank), torch.ones(1, dtype=torch.float64)])
    right["sum"] = [part.tolist() for part in sums] == [[3.0, 3.0], 3, [3.0]]
    right["from_first"] = ranks.from_first(f"rank {rank}") == "rank 0"
    (Path(folder) / f"{rank}.json").write_text(json.dumps(right))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bucket", [2**24, 30])
def test_every_rank_receives_every_update(tmp_path, bucket):
    multiprocessing.spawn(_rank, args=(str(tmp_path), bucket), nprocs=RANKS)
    for rank in range(RANKS):
        right = json.loads((tmp_path / f"{rank}.json").read_text())
        assert all(right.values()), right


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_work_is_split_evenly(size):
    shapes = [(64, 64)] * 12 + [(64, 256)] * 6
    owner_of = owners(shapes, size)
    costs = [shape[0] * shape[1] * 64 for shape in shapes]
    loads = [sum(cost for cost, owner in zip(costs, owner_of, strict=True) if owner == rank) for rank in range(size)]
    assert set(owner_of) == set(range(size))
    assert max(loads) <= sum(costs) / size + max(costs)


def test_the_largest_matrix_is_assigned_first():
    assert owners([(1, 1), (1, 1), (1, 2)], 2) == [1, 1, 0]  # in their own order one rank would have 3 of 4 parts


def test_a_single_rank_does_not_communicate():
    ranks = Ranks()
    values = [torch.ones(2)]
    assert ranks.sum(values)[0] is values[0]
    assert ranks.gather("x") == ["x"]
    ranks.wait()
