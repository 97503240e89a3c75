"""One console for several runs that train together: it shows the means over their seeds."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from natattn.tracking import DIVERGED, Record
from natattn.tracking.console import Console


class SeedMeans:
    """A Tracker that every seed's run is given; ``show`` passes the means of what they have logged to the console.

    A value that is not finite does not enter a mean. An arm is shown as diverged when it has in every seed.

    Args:
        seeds: how many.
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
        """Takes one seed's records."""
        for record in records:
            self._collected.setdefault((record.step, record.arm, record.name), []).append(record)

    def flush(self) -> None:
        """Nothing to wait for."""

    def show(self) -> None:
        """Pass on the means, once all seeds have logged what they have to say of a step."""
        records = [mean for found in self._collected.values() if (mean := self._mean(found)) is not None]
        self._collected.clear()
        if records:
            self._console.log(records)

    def _mean(self, found: list[Record]) -> Record | None:
        first = found[0]
        if first.name == DIVERGED:
            self._diverged[first.arm] = self._diverged.get(first.arm, 0) + len(found)
            return first if self._diverged[first.arm] >= self._seeds else None
        values = [record.value for record in found if math.isfinite(record.value)]
        if not values:
            return None
        return first._replace(value=sum(values) / len(values), seconds=max(record.seconds for record in found))
