"""A progress bar on stderr, shown only on a terminal."""

import sys
from collections.abc import Iterator
from typing import Any


class Progress:
    """A counter of bytes of text or images: `with Progress("tokenizing", total, shown) as bar: bar.advance(100)`."""

    def __init__(self, label: str, total: int | None, shown: bool) -> None:
        self._label, self._total = label, total
        self._shown = shown and sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self._shown:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._label, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count `count` more bytes."""
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def watch(self, texts: Iterator[str]) -> Iterator[str]:
        """Yield the same texts and count them."""
        for text in texts:
            yield text
            self.advance(len(text.encode()))
