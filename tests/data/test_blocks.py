import itertools

import numpy as np
import pytest

from natattn.data import Batches, TokenSplit, evaluation_batches
from natattn.data.text.blocks import IGNORED_LABEL
from natattn.errors import UserError


def make_split(count: int) -> TokenSplit:
    """Token i is i, so that a batch shows where it was cut."""
    return TokenSplit(np.arange(count, dtype=np.uint32), byte_count=count, document_count=1)


def make_batches(count: int = 1000, **changes: object) -> Batches:
    fields = {"batch_size": 8, "context": 16, "seed": 3, "sampling": "random"} | changes
    return Batches(make_split(count), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["random", "epochs"])
def test_a_batch_does_not_depend_on_what_was_asked_before(sampling: str) -> None:
    batches = make_batches(sampling=sampling)
    forward = [batches.batch(step) for step in range(30)]
    for step in (29, 3, 17, 3, 0):
        fresh = make_batches(sampling=sampling)
        assert np.array_equal(fresh.batch(step), forward[step])
        assert np.array_equal(batches.batch(step), forward[step])


@pytest.mark.parametrize("sampling", ["random", "epochs"])
@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(1, 2), (2, 1), (2, 2), (4, 2), (1, 8), (8, 1)])
def test_parts_make_up_the_global_batch(sampling: str, world_size: int, accumulation_steps: int) -> None:
    batches = make_batches(sampling=sampling)
    for step in range(20):  # 61 blocks an epoch, so parts cross its end in all ways
        parts = [
            batches.batch(
                step,
                rank=rank,
                world_size=world_size,
                accumulation_index=index,
                accumulation_steps=accumulation_steps,
            )
            for rank, index in itertools.product(range(world_size), range(accumulation_steps))
        ]
        assert np.array_equal(np.concatenate(parts), batches.batch(step))


@pytest.mark.parametrize("sampling", ["random", "epochs"])
def test_a_sample_depends_on_its_global_index_not_on_the_batch_size(sampling: str) -> None:
    small, large = make_batches(sampling=sampling, batch_size=4), make_batches(sampling=sampling, batch_size=12)
    rows_of_small = np.concatenate([small.batch(step) for step in range(30)])
    rows_of_large = np.concatenate([large.batch(step) for step in range(10)])
    assert np.array_equal(rows_of_small, rows_of_large)


def test_a_row_is_consecutive_text_and_labels_are_shifted_by_one() -> None:
    batch = make_batches().batch(5)
    assert batch.dtype == np.int64
    assert batch.shape == (8, 17)
    assert np.array_equal(batch[:, 1:], batch[:, :-1] + 1)


def test_random_windows_cover_the_split_uniformly() -> None:
    batches = make_batches(count=36, batch_size=1000)  # starts 0 … 19
    starts = np.concatenate([batches.batch(step)[:, 0] for step in range(20)])
    counts = np.bincount(starts, minlength=20)
    assert len(counts) == 20
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, one chance in a thousand


def test_seeds_and_steps_give_different_batches() -> None:
    batches = [make_batches(100_000, seed=seed).batch(step) for seed in (0, 1, 2**62, -1) for step in (0, 1)]
    for one, other in itertools.combinations(batches, 2):
        assert not np.array_equal(one, other)


def test_an_epoch_visits_every_block_once_and_the_next_in_another_order() -> None:
    context = 16
    batches = make_batches(sampling="epochs", batch_size=1, context=context)
    blocks = batches.blocks_per_epoch
    assert blocks == (1000 - context) // context
    epochs = []
    for epoch in range(3):
        starts = np.array([batches.batch(epoch * blocks + i)[0, 0] for i in range(blocks)])
        assert np.array_equal(np.diff(np.sort(starts)), np.full(blocks - 1, context))  # no overlap of inputs, no gap
        assert 0 <= starts.min() < context
        assert starts.max() + context < 1000
        epochs.append(starts)
    orders = [np.argsort(starts).tolist() for starts in epochs]
    assert orders[0] != orders[1] != orders[2]
    assert len({int(starts.min()) for starts in epochs}) > 1  # another offset


def stream(tokens: np.ndarray) -> TokenSplit:
    return TokenSplit(tokens.astype(np.uint16), byte_count=len(tokens), document_count=1)


@pytest.mark.parametrize("count", [17, 18, 31, 32, 33, 34, 48, 49])
@pytest.mark.parametrize("sampling", ["random", "epochs"])
def test_short_splits_never_read_beyond_their_end(count: int, sampling: str) -> None:
    batches = make_batches(count, sampling=sampling)
    for step in range(50):
        batch = batches.batch(step)
        assert batch.shape == (8, 17)
        assert batch.max() < count


def test_too_short_a_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"size\.context=16: longer than the text, which has 16 tokens"):
        make_batches(16)
    with pytest.raises(UserError, match=r"longer than the text, which has 16 tokens"):
        next(evaluation_batches(stream(np.arange(16)), batch_size=1, context=16))


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size=8 .* 3 ranks × 1"):
        make_batches().batch(0, world_size=3)
    with pytest.raises(UserError, match=r"train\.batch_size=8"):
        make_batches().batch(0, world_size=4, accumulation_steps=4)


@pytest.mark.parametrize("count", [9, 10, 16, 17, 18, 100, 129])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_predicts_every_token_but_the_first_exactly_once(count: int, batch_size: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    predicted = []
    for inputs, labels in evaluation_batches(stream(tokens), batch_size=batch_size, context=8):
        assert inputs.dtype == labels.dtype == np.int64
        assert inputs.shape == labels.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == 8
        kept = labels != IGNORED_LABEL
        assert np.array_equal(labels[kept], inputs[kept] + 1)  # token i is i: shifted once
        predicted += labels[kept].tolist()
    assert predicted == list(range(1, count))


def test_evaluation_rows_do_not_depend_on_the_batch_size() -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 333).astype(np.uint16)
    results = []
    for batch_size in (1, 4, 1000):
        pairs = list(evaluation_batches(stream(tokens), batch_size=batch_size, context=10))
        results.append([np.concatenate(part) for part in zip(*pairs, strict=True)])
    for inputs, labels in results[1:]:
        assert np.array_equal(inputs, results[0][0])
        assert np.array_equal(labels, results[0][1])


@pytest.mark.parametrize("sampling", ["random", "epochs"])
def test_of_a_split_of_rows_batches_are_whole_rows(sampling: str) -> None:
    tokens = np.arange(7 * 5, dtype=np.uint16)
    rows = TokenSplit(tokens, byte_count=35, document_count=7, row_length=5)
    batches = Batches(rows, batch_size=7, context=4, seed=0, sampling=sampling)  # type: ignore[arg-type]
    starts = [int(row[0]) for step in range(20) for row in batches.batch(step)]
    assert all(start % 5 == 0 for start in starts)
    assert set(starts) == set(range(0, 35, 5))
    if sampling == "epochs":
        assert sorted(starts[:7]) == sorted(starts[7:14]) == list(range(0, 35, 5))


def test_evaluation_of_a_split_of_rows_predicts_all_but_the_first_of_each() -> None:
    rows = TokenSplit(np.arange(35, dtype=np.uint16), byte_count=35, document_count=7, row_length=5)
    labels = np.concatenate([labels for _, labels in evaluation_batches(rows, batch_size=3, context=4)])
    assert labels.flatten().tolist() == [token for token in range(35) if token % 5]


def test_rows_shorter_than_the_context_are_refused() -> None:
    rows = TokenSplit(np.arange(35, dtype=np.uint16), byte_count=35, document_count=7, row_length=5)
    with pytest.raises(UserError, match="5 tokens in a row"):
        Batches(rows, batch_size=1, context=5, seed=0, sampling="epochs")
