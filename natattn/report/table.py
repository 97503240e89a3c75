"""The table of every page and file, its cells, and the findings that bear on claims."""

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
class Table:
    """Rows under headings, with the runs behind each row.

    Attributes:
        name: of its files: letters, digits and underscores; empty if it is not written to files.
        title: one line.
        caption: what a reader must know: budget, definitions, what was adjusted.
        headings: of the columns.
        rows: numbers keep all their digits here and are rounded only for display; None is unknown.
        runs: for each row, the folders of its runs (as many entries as rows); empty if the table is not about runs.
        align: "l" or "r" for each column; numbers to the right if empty.
    """

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    runs: tuple[tuple[Path, ...], ...] = ()
    align: str = ""


StudyTable = Table


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


# Number format of cells: as many digits as the interval supports.

NOTHING = "—"
_DIGITS = 4  # significant digits of a number without an interval
_DIGITS_OF_INTERVAL = 2  # significant digits of half an interval's width
_MOST_DIGITS = 15  # of a float64
_PLAIN = (1e-3, 1e7)  # sizes that are written without a power of ten
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def cell_text(cell: Cell, digits: int = _DIGITS) -> str:
    """Return a cell as text; unknown values are a dash.

    Args:
        digits: significant digits of a number without an interval.
    """
    if cell is None:
        return NOTHING
    if isinstance(cell, Badge):
        return cell.verdict
    if isinstance(cell, Estimate):
        return estimate_text(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return fixed(cell, 0)
    return number_text(cell, digits) if isinstance(cell, float) else str(cell)


def number_text(value: float, digits: int = _DIGITS) -> str:
    """Return a number with ``digits`` significant digits; digits before the decimal point are never rounded away."""
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    exponent = _exponent(value, digits)
    if _PLAIN[0] / 10 <= abs(value) < _PLAIN[1]:
        return _strip_zeros(fixed(value, max(0, digits - 1 - exponent)))
    mantissa = fixed(float(f"{value:.{digits - 1}e}".split("e")[0]), digits - 1)
    return f"{_strip_zeros(mantissa)} × 10{str(exponent).translate(_SUPERSCRIPTS)}"


def estimate_text(estimate: Estimate) -> str:
    """Return "value [low, high]", all three with the decimals of the second digit of half the interval's width.

    Without an interval, return the value alone. An interval that is open on one side has the width of the other.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if math.isnan(low) and math.isnan(high):
        return number_text(value)
    finite = [abs(number) for number in (value, low, high) if math.isfinite(number)]
    half = half_width(estimate)
    if not finite or not half > 0:  # no interval to derive digits from
        return f"{number_text(value)} [{number_text(low)}, {number_text(high)}]"
    largest = _exponent(max(finite), _MOST_DIGITS)
    decimals = min(_DIGITS_OF_INTERVAL - 1 - _exponent(half, _DIGITS_OF_INTERVAL), _MOST_DIGITS - 1 - largest)
    if _PLAIN[0] <= max(finite) < _PLAIN[1]:
        return f"{fixed(value, decimals)} [{fixed(low, decimals)}, {fixed(high, decimals)}]"
    parts = [fixed(number / 10.0**largest, decimals + largest) for number in (value, low, high)]
    return f"({parts[0]} [{parts[1]}, {parts[2]}]) × 10{str(largest).translate(_SUPERSCRIPTS)}"


def link_target(run: Path) -> Path:
    """Return what a page links to for a run: its folder, or the record that it is packed in (``runs.jsonl/NAME``)."""
    return run.parent if run.parent.suffix == ".jsonl" else run


def half_width(estimate: Estimate) -> float:
    """Return half the width of the interval: of its one finite side if the other is open; nan without bounds."""
    sides = [abs(bound - estimate.value) for bound in (estimate.low, estimate.high) if math.isfinite(bound)]
    if len(sides) == 2:
        return (estimate.high - estimate.low) / 2
    return sides[0] if sides and math.isfinite(sides[0]) else math.nan


def fixed(value: float, decimals: int) -> str:
    """Return a number with ``decimals`` decimals (tens or hundreds below zero); −0 is 0, and nan is a dash."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{round(value, decimals) + 0:,.{max(0, decimals)}f}"  # + 0 removes the sign of a zero
    return text.replace("-", "−")


def _strip_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _exponent(value: float, digits: int) -> int:
    """The power of ten of the leading digit after rounding: with two digits, 0.0996 is 0.10."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])
