"""What every corpus offers, and the hash that draws held-out documents."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

SplitName = Literal["train", "validation", "test"]


class Corpus(Protocol):
    """Text in splits. A document is an iterable of pieces (strings) that are read one after the other.

    Long documents come in pieces so that no document has to fit in memory.
    """

    name: str

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits there are; train and validation always."""
        ...

    def digest(self, split: SplitName) -> str:
        """Hash of the split's content and of the rule that selects it."""
        ...

    def size(self, split: SplitName) -> int | None:
        """About how many bytes `documents` yields, for the progress bar; None if that is not known beforehand."""
        ...

    def documents(self, split: SplitName) -> Iterator[Iterable[str]]:
        """The split's documents, in a fixed order."""
        ...


def hash_number(content: bytes) -> int:
    """A number in [0, 2^64) that depends on the content alone and is uniform over contents."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def hash_share(content: bytes) -> float:
    """The same, scaled to [0, 1)."""
    return hash_number(content) / 2**64
