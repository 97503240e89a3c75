"""The cells and tables of studies, and the findings that bear on claims."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from natattn.statistics.paired import Verdict, t_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. The bounds are nan if there are too few repetitions for an interval."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> "Estimate":
        """Return the mean with its 95 % t interval: bounds of nan for one value, all nan for none."""
        centre, half = t_interval(values)
        return cls(centre, centre - half, centre + half)


@dataclass(frozen=True)
class Badge:
    """A verdict, as a cell of a table."""

    verdict: Verdict


Cell = str | int | float | Estimate | Badge | None


@dataclass(frozen=True)
class StudyTable:
    """Rows under headings, with the runs behind each row.

    Attributes:
        name: of its files: letters, digits and underscores.
        title: one line.
        caption: what a reader must know: budget, definitions, what was adjusted.
        headings: of the columns.
        rows: numbers keep all their digits here and are rounded only for display; None is unknown.
        runs: for each row, the folders of its runs; may be empty (as many entries as rows).
    """

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    runs: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True)
class Finding:
    """One measurement that bears on a claim.

    Attributes:
        claim: its id in the ledger.
        study: the study that measured it.
        what: what was compared or measured, in words.
        where: the data or family of models that it holds for.
        estimate: the effect, with the interval that belongs to the verdict.
        unit: of the effect; empty for a pure number.
        count: repetitions behind the interval: seeds, or models.
        verdict: by protocol 7.
        p_value: adjusted as its table's rule says; None if no test was made.
        note: what bars or explains the verdict.
        runs: folders of the runs behind it.
        against: what the claim compares the effect with; the verdict is about the effect minus this value.
    """

    claim: str
    study: str
    what: str
    where: str
    estimate: Estimate
    unit: str
    count: int
    verdict: Verdict
    p_value: float | None = None
    note: str = ""
    runs: tuple[Path, ...] = ()
    against: float = 0.0
