"""Which pictures are held out: drawn by a hash of their content, so that no picture is in two splits."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from natattn.data.text.splits import SplitName
from natattn.errors import UserError


def draw_splits(
    keys: Sequence[int] | np.ndarray, fractions: Mapping[SplitName, float], source: str
) -> dict[SplitName, np.ndarray]:
    """{split: int64 indices, ascending} of the pictures whose content hashes are `keys`, train among them.

    Each held-out split takes its fraction of the different hashes, the smallest first: the choice depends on no order,
    and equal pictures stay together. Raises UserError naming `source` where nothing is left to train on.
    """
    hashes = np.asarray(keys, dtype=np.uint64)
    ordered, ranks = np.unique(hashes, return_inverse=True)
    splits: dict[SplitName, np.ndarray] = {}
    low = 0
    for split, share in fractions.items():
        high = low + math.ceil(len(ordered) * share)
        splits[split] = np.flatnonzero((ranks >= low) & (ranks < high))
        low = high
    if low >= len(ordered):
        raise UserError(
            f"{source}: {len(ordered)} different images are too few to be split; give data.validation or more images"
        )
    return splits | {"train": np.flatnonzero(ranks >= low)}
