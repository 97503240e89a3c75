import itertools

import numpy as np
import pytest

from natattn.data import Batches, TokenSplit
from natattn.data.text.blocks import Sampling, part_of_batch, sample_indices
from natattn.errors import UserError


@pytest.mark.parametrize("sampling", ["random", "epochs"])
def test_rows_of_a_token_split_are_the_sample_indices(sampling: Sampling) -> None:
    rows = TokenSplit(np.arange(35, dtype=np.uint16), byte_count=35, document_count=7, row_length=5)
    batches = Batches(rows, batch_size=4, context=4, seed=11, sampling=sampling)
    taken = np.concatenate([batches.batch(step)[:, 0] // 5 for step in range(10)])
    indices = sample_indices(11, sampling, 0, 40, 7)
    assert indices.dtype == np.int64
    assert np.array_equal(taken, indices)


@pytest.mark.parametrize("sampling", ["random", "epochs"])
def test_an_index_depends_on_its_sample_alone(sampling: Sampling) -> None:
    whole = sample_indices(3, sampling, 0, 100, 13)
    for first, count in [(0, 1), (5, 40), (12, 2), (99, 1)]:
        assert np.array_equal(sample_indices(3, sampling, first, count, 13), whole[first : first + count])
    assert not np.array_equal(sample_indices(4, sampling, 0, 100, 13), whole)


def test_the_numbers_stay_what_they_are() -> None:
    """Runs that are resumed with a later release go on with the same samples."""
    assert sample_indices(0, "random", 0, 6, 1000).tolist() == [813, 705, 565, 347, 163, 794]
    assert sample_indices(0, "epochs", 0, 8, 8).tolist() == [6, 7, 2, 1, 3, 5, 0, 4]


def test_an_epoch_visits_every_place_once() -> None:
    indices = sample_indices(0, "epochs", 0, 30, 10).reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in indices.tolist())
    assert len({tuple(epoch) for epoch in indices.tolist()}) == 3


@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(1, 1), (2, 2), (4, 2), (1, 8)])
def test_the_parts_of_a_batch_follow_one_another(world_size: int, accumulation_steps: int) -> None:
    parts = [
        part_of_batch(
            5, 8, rank=rank, world_size=world_size, accumulation_index=index, accumulation_steps=accumulation_steps
        )
        for rank, index in itertools.product(range(world_size), range(accumulation_steps))
    ]
    samples = [sample for first, count in parts for sample in range(first, first + count)]
    assert samples == list(range(40, 48))


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size=8 cannot be divided equally among 3 ranks × 1"):
        part_of_batch(0, 8, world_size=3)
