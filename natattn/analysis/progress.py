"""A bar for every section of an analysis, on stderr; nothing where there is no terminal."""

import sys
from collections.abc import Callable, Sequence
from typing import Any


class SectionProgress:
    """``begin`` gives what a measure calls with the number of things that it has done more."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "SectionProgress":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeElapsedColumn(),
            )  # fmt: skip
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._tasks = {name: self._bar.add_task(name, total=None, start=False) for name in self._names}
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str) -> Callable[[int], None]:
        """A section is under way."""
        if self._bar is None:
            return lambda count: None
        self._bar.start_task(self._tasks[name])
        return lambda count: self._bar.advance(self._tasks[name], count)

    def end(self, name: str) -> None:
        """It is done."""
        if self._bar is not None:
            done = max(1, self._bar.tasks[self._tasks[name]].completed)
            self._bar.update(self._tasks[name], total=done, completed=done)

    def skip(self, name: str) -> None:
        """It was there already."""
        if self._bar is not None:
            self._bar.update(self._tasks[name], total=1, completed=1, description=f"{name} (kept)")
