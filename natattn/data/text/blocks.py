"""Tokens to batches. A batch is addressed by (seed, step, sample index), so nothing has to be replayed or shared."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from natattn.errors import UserError

IGNORED_LABEL = -100  # ignored by the cross-entropy of torch and transformers

Sampling = Literal["random", "epochs"]

# Purposes are keys of the generators, so that two uses of one seed never draw the same numbers.
_SAMPLE, _PERMUTATION, _OFFSET = 1, 2, 3
AUGMENTATION, SCENE = 4, 5

WORDS = 4  # one Philox counter value yields four 64-bit words


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split of a tokenized corpus.

    `tokens`: [tokens] uint16 or uint32, memory-mapped, with the end token after each document.
    `byte_count`: UTF-8 bytes of the text, so that losses can be given in nats per byte.
    `row_length`: length of each row if the tokens are independent rows instead of one stream; windows then begin at
    rows, and the first token of a row is not predicted.
    """

    tokens: np.ndarray
    byte_count: int
    document_count: int
    row_length: int | None = None


@dataclass(frozen=True, eq=False)
class Batches:
    """Training batches as a pure function of (seed, step, sample index within the global batch).

    Sample i of step s has the global index s · batch_size + i, which alone determines its content:

    - `random`: a window of context + 1 tokens whose start is uniform over the split.
    - `epochs`: a block without replacement. Each epoch cuts the split at its own seeded offset into blocks that overlap
      in one token (the last label of one is the first input of the next) and visits them in a seeded order. The offset
      skips up to two contexts of tokens at the ends, different ones in each epoch.

    From a split of rows both take whole rows.

    Raises: UserError if the split is shorter than context + 1 tokens.
    """

    split: TokenSplit
    batch_size: int
    context: int
    seed: int
    sampling: Sampling

    def __post_init__(self) -> None:
        check_length(self.split, self.context)

    @property
    def blocks_per_epoch(self) -> int:
        """Return the number of blocks in one epoch."""
        if self.split.row_length is not None:
            return len(self.split.tokens) // self.split.row_length
        return max(1, (len(self.split.tokens) - self.context) // self.context)

    def batch(
        self,
        step: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation_index: int = 0,
        accumulation_steps: int = 1,
    ) -> np.ndarray:
        """Return int64 [batch_size / (world_size · accumulation_steps), context + 1]: inputs [:, :-1], labels [:, 1:].

        Each rank has a contiguous part of the global batch and cuts it, in order, into accumulation slices:
        concatenated by rank and then by slice, the parts are the global batch, for any number of parts.

        Raises: UserError if the batch cannot be divided into that many equal parts.
        """
        first, count = part_of_batch(
            step,
            self.batch_size,
            rank=rank,
            world_size=world_size,
            accumulation_index=accumulation_index,
            accumulation_steps=accumulation_steps,
        )
        return _windows(self.split.tokens, self._starts(first, count), self.context + 1)

    def _starts(self, first: int, count: int) -> np.ndarray:
        """Return int64 [count]: the window starts of the global samples first … first + count - 1."""
        row_length = self.split.row_length
        if row_length is not None:
            return sample_indices(self.seed, self.sampling, first, count, self.blocks_per_epoch) * row_length
        if self.sampling == "random":
            return sample_indices(self.seed, "random", first, count, len(self.split.tokens) - self.context)
        blocks = self.blocks_per_epoch
        spare = len(self.split.tokens) - 1 - blocks * self.context
        epochs = np.arange(first, first + count) // blocks
        # One draw per epoch; a batch may span several epochs.
        offsets = {
            epoch: scale(_philox(self.seed, _OFFSET, counter=epoch).random_raw(1), min(spare, self.context - 1) + 1)
            for epoch in np.unique(epochs).tolist()
        }
        order = sample_indices(self.seed, "epochs", first, count, blocks)
        starts: np.ndarray = order * self.context + np.concatenate([offsets[epoch] for epoch in epochs.tolist()])
        return starts


def part_of_batch(
    step: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulation_index: int = 0,
    accumulation_steps: int = 1,
) -> tuple[int, int]:
    """Return (global index of the first sample, number of samples) of one rank's accumulation slice of a step.

    Raises: UserError if the batch cannot be divided into that many equal parts.
    """
    part_size, remainder = divmod(batch_size, world_size * accumulation_steps)
    if remainder or not part_size:
        raise UserError(
            f"train.batch_size={batch_size} cannot be divided equally among "
            f"{world_size} ranks × {accumulation_steps} accumulation steps"
        )
    part = rank * accumulation_steps + accumulation_index
    return step * batch_size + part * part_size, part_size


def sample_indices(seed: int, sampling: Sampling, first: int, count: int, places: int) -> np.ndarray:
    """Return int64 [count] in 0 … places - 1: the content of the global samples first … first + count - 1.

    `random`: uniform and independent. `epochs`: all places once before any repeats, in a seeded order that differs in
    each epoch.
    """
    if sampling == "random":
        return scale(sample_words(seed, _SAMPLE, first, count)[:, 0], places)
    indices = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:  # repeats only if the batch crosses the end of an epoch
        epoch, position = divmod(first + done, places)
        taken = min(count - done, places - position)
        indices[done : done + taken] = _permutation(seed, epoch, places)[position : position + taken]
        done += taken
    return indices


def sample_words(seed: int, purpose: int, first: int, count: int) -> np.ndarray:
    """Return uint64 [count, WORDS]: uniform words of the global samples first … first + count - 1."""
    return _philox(seed, purpose, counter=first).random_raw(count * WORDS).reshape(count, WORDS)


def scale(words: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Map uniform 64-bit words to uniform integers, int64, in 0 … count - 1."""
    # 53 bits make the float exact; the product cannot reach `count`, and numpy's own `integers` may draw again.
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * count).astype(np.int64)


def evaluation_batches(split: TokenSplit, *, batch_size: int, context: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (inputs, labels), int64 [at most batch_size, context], that predict each token but the first exactly once.

    Rows are consecutive blocks in a fixed order that does not depend on batch_size. The last row consists of the last
    context + 1 tokens of the split, so nothing is padded; labels that it shares with the row before are IGNORED_LABEL.
    From a split of rows, its rows, each truncated to context + 1 tokens.

    Raises: UserError if there are fewer than context + 1 tokens.
    """
    check_length(split, context)
    last_start = len(split.tokens) - 1 - context
    if split.row_length is None:
        starts = np.arange(0, last_start + context, context, dtype=np.int64)
    else:
        starts = np.arange(0, last_start + 1, split.row_length, dtype=np.int64)
    for first in range(0, len(starts), batch_size):
        wanted = starts[first : first + batch_size]
        rows = _windows(split.tokens, np.minimum(wanted, last_start), context + 1)
        labels = rows[:, 1:].copy()
        repeated = int(wanted[-1] - min(wanted[-1], last_start))
        labels[-1, :repeated] = IGNORED_LABEL
        yield rows[:, :-1], labels


def check_length(split: TokenSplit, context: int, what: str = "the text") -> None:
    """Raise UserError, naming `what` the split is, if it contains no window of context + 1 tokens."""
    row_length = split.row_length if len(split.tokens) else None
    length = len(split.tokens) if row_length is None else row_length
    if length < context + 1:
        unit, more = ("tokens", "more text") if row_length is None else ("tokens in a row", "longer rows")
        raise UserError(
            f"size.context={context}: longer than {what}, which has {length} {unit}. "
            f"Use a context of at most {length - 1}, or {more}"
        )


def _windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Return int64 [len(starts), length]: the tokens from each start."""
    # A plain view: indexing np.memmap costs more than reading.
    view = np.lib.stride_tricks.sliding_window_view(tokens.view(np.ndarray), length)
    windows: np.ndarray = view[starts].astype(np.int64)
    return windows


def _philox(seed: int, purpose: int, *, counter: int = 0, stream: int = 0) -> np.random.Philox:
    """Return the counter-based generator of one purpose at `counter` of one of its streams."""
    # Typed arrays: from a list numpy would round large seeds through floats. The modulo admits negative seeds.
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([counter, stream, 0, 0], dtype=np.uint64))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return int64 [count]: the order in which one epoch visits its places."""
    # Sorting raw words is the same in every numpy version, which Generator.permutation does not promise.
    return np.argsort(_philox(seed, _PERMUTATION, stream=epoch).random_raw(count), kind="stable")
