"""One console for stacked seeds, which shows means over the seeds."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from natattn.tracking import DIVERGED, Record
from natattn.tracking.console import Console


class SeedMeans:
    """A Tracker that all seeds share; ``show`` sends the means of what they logged to the console.

    Means are over finite values. An arm is shown as diverged when it has diverged in every seed.

    Args:
        seeds: number of seeds.
    """

    def __init__(self, console: Console, seeds: int) -> None:
        self._console = console
        self._seeds = seeds
        self._open = 0
        self._collected: dict[tuple[int, str | None, str], list[Record]] = {}
        self._diverged: dict[str | None, int] = {}

    def __enter__(self) -> Self:
        if self._open == 0:
            self._console.__enter__()
        self._open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open -= 1
        if self._open == 0:
            self.show()
            self._console.__exit__(kind, error, traceback)

    def log(self, records: Sequence[Record]) -> None:
        """Collect records of one seed."""
        for record in records:
            self._collected.setdefault((record.step, record.arm, record.name), []).append(record)

    def flush(self) -> None:
        """Do nothing."""

    def show(self) -> None:
        """Send the means to the console; call it when all seeds have logged a step."""
        records = [mean for group in self._collected.values() if (mean := self._mean(group)) is not None]
        self._collected.clear()
        if records:
            self._console.log(records)

    def _mean(self, group: list[Record]) -> Record | None:
        first = group[0]
        if first.name == DIVERGED:
            self._diverged[first.arm] = self._diverged.get(first.arm, 0) + len(group)
            return first if self._diverged[first.arm] >= self._seeds else None
        values = [record.value for record in group if math.isfinite(record.value)]
        if not values:
            return None
        return first._replace(value=sum(values) / len(values), seconds=max(record.seconds for record in group))
