"""Trackers of a run: the metrics file, which everything else is made from, and its mirrors (wandb, console)."""

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

DIVERGED = "diverged"  # record of an arm that has diverged; its value is the step


class Record(NamedTuple):
    """One observation of a run.

    `arm` is None for observations of the whole run. `seconds` is the wall time since the run started, accumulated over
    resumes. `seconds` and every record whose name begins with `time/` are clock readings: they differ between two
    runs that are otherwise equal to the bit.
    """

    step: int
    arm: str | None
    name: str
    value: float
    seconds: float


class Tracker(Protocol):
    """A context manager that receives records while it is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def log(self, records: Sequence[Record]) -> None:
        """Receive records; cheap enough to be called at every step."""

    def flush(self) -> None:
        """Make everything logged so far durable, as far as the tracker promises durability."""
