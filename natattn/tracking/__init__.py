"""Where a run's numbers go: the metrics file is the truth, wandb and the console show what it holds."""

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

DIVERGED = "diverged"  # name of the record of an arm that trains no more; its value is the step


class Record(NamedTuple):
    """One observation of a run.

    `arm` is None for what belongs to the whole run. `seconds` is the wall time since the run started, accumulated over
    resumes. That field, and every record whose name begins with `time/`, are clock readings: they differ between two
    runs that are otherwise equal to the bit.
    """

    step: int
    arm: str | None
    name: str
    value: float
    seconds: float


class Tracker(Protocol):
    """Takes records while it is open, as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def log(self, records: Sequence[Record]) -> None:
        """Takes records; cheap enough to be called at every step."""

    def flush(self) -> None:
        """Returns when what was logged would outlive this process, as far as the tracker promises that."""
