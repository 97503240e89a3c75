"""The raw WikiText releases, read through `datasets`."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal

from natattn.config.base import Settings
from natattn.data.hub import load_dataset
from natattn.data.text.splits import SplitName

_TITLE = re.compile(r" = [^=].* = \n?")  # " = Title = "; sections have more signs: " = = Section = = "
_ROWS = 1024


class WikitextSettings(Settings):
    """A raw release: `dataset` is a hub name or a folder, `release` its configuration."""

    kind: Literal["wikitext"]
    dataset: str
    release: Literal["wikitext-2-raw-v1", "wikitext-103-raw-v1"]


class WikitextCorpus:
    """A corpus whose documents are the articles."""

    splits: tuple[SplitName, ...] = ("train", "validation", "test")

    def __init__(self, settings: WikitextSettings) -> None:
        self.settings = settings
        self.name: str = settings.release

    def digest(self, split: SplitName) -> str:
        """Return a hash of the rows of the split."""
        state = hashlib.sha256()
        for row in self._rows(split):
            state.update(row.encode())
        return state.hexdigest()

    def size(self, split: SplitName) -> int | None:
        info = self._dataset[split].info.splits
        return info[split].num_bytes if info and split in info else None

    def documents(self, split: SplitName) -> Iterator[Iterable[str]]:
        article: list[str] = []
        for row in self._rows(split):
            if _TITLE.fullmatch(row) and any(line.strip() for line in article):
                yield tuple(article)
                article = []
            article.append(row)
        if article:
            yield tuple(article)

    def _rows(self, split: SplitName) -> Iterator[str]:
        """Yield the lines of the release, in order."""
        for batch in self._dataset[split].iter(batch_size=_ROWS):
            # The hub's rows are "" for the line " \n" of the released file.
            yield from (row or " \n" for row in batch["text"])

    @cached_property
    def _dataset(self) -> Any:
        return load_dataset(
            self.settings.dataset,
            self.settings.release,
            otherwise="data=stdlib, data=text data.train=FILE or data=grammar",
        )
