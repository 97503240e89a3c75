"""The interface of a corpus, and the hash that draws held-out documents."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

SplitName = Literal["train", "validation", "test"]


class Corpus(Protocol):
    """Text in splits. A document is an iterable of pieces (strings) that are read in order.

    Long documents come in pieces so that no document has to fit in memory.
    """

    name: str

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Return the available splits; train and validation are always among them."""
        ...

    def digest(self, split: SplitName) -> str:
        """Return a hash of the split's content and of the rule that selects it."""
        ...

    def size(self, split: SplitName) -> int | None:
        """Return the approximate number of bytes of `documents`, for the progress bar; None if unknown."""
        ...

    def documents(self, split: SplitName) -> Iterator[Iterable[str]]:
        """Yield the split's documents in a fixed order."""
        ...


def hash_number(content: bytes) -> int:
    """Return a number in [0, 2^64) that depends only on the content and is uniform over contents."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def hash_share(content: bytes) -> float:
    """Return `hash_number` scaled to [0, 1)."""
    return hash_number(content) / 2**64
