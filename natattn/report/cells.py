"""How the cells of a study's tables are written: numbers to the digits that their intervals support."""

import math
from pathlib import Path

from natattn.report.table import Badge, Cell, Estimate

NOTHING = "—"
DIGITS = 4  # significant, of numbers without an interval
_DIGITS_OF_INTERVAL = 2  # of half its width
_MOST_DIGITS = 15  # that a float64 has
_PLAIN = (1e-3, 1e7)  # numbers of this size are written without a power of ten
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def cell_text(cell: Cell) -> str:
    """A cell as it is read; what is not known is a dash."""
    if cell is None:
        return NOTHING
    if isinstance(cell, Badge):
        return cell.verdict
    if isinstance(cell, Estimate):
        return estimate_text(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return fixed(cell, 0)
    return number_text(cell) if isinstance(cell, float) else str(cell)


def number_text(value: float, digits: int = DIGITS) -> str:
    """A number to some significant digits."""
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    exponent = exponent_of(value, digits)
    if _PLAIN[0] / 10 <= abs(value) < _PLAIN[1]:
        # Digits in front of the point are never rounded away.
        return _without_zeros(fixed(value, max(0, digits - 1 - exponent)))
    mantissa = fixed(float(f"{value:.{digits - 1}e}".split("e")[0]), digits - 1)
    return f"{_without_zeros(mantissa)} × 10{str(exponent).translate(_RAISED)}"


def _without_zeros(text: str) -> str:
    """Of a number without an interval zeros at the end say nothing."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def estimate_text(estimate: Estimate) -> str:
    """value [low, high], all three with the decimals of the second digit of half the interval's width.

    The value alone where both bounds are unknown; an interval that is open on one side has the width of the other.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if math.isnan(low) and math.isnan(high):
        return number_text(value)
    finite = [abs(number) for number in (value, low, high) if math.isfinite(number)]
    half = half_width(estimate)
    if not finite or not half > 0:  # nothing that could support digits
        return f"{number_text(value)} [{number_text(low)}, {number_text(high)}]"
    largest = exponent_of(max(finite), _MOST_DIGITS)
    decimals = min(_DIGITS_OF_INTERVAL - 1 - exponent_of(half, _DIGITS_OF_INTERVAL), _MOST_DIGITS - 1 - largest)
    if _PLAIN[0] <= max(finite) < _PLAIN[1]:
        return f"{fixed(value, decimals)} [{fixed(low, decimals)}, {fixed(high, decimals)}]"
    parts = [fixed(number / 10.0**largest, decimals + largest) for number in (value, low, high)]
    return f"({parts[0]} [{parts[1]}, {parts[2]}]) × 10{str(largest).translate(_RAISED)}"


def link_target(run: Path) -> Path:
    """Return what a page links to for a run: its folder, or the record that it is packed in (``runs.jsonl/NAME``)."""
    return run.parent if run.parent.suffix == ".jsonl" else run


def half_width(estimate: Estimate) -> float:
    """Half the width of the interval; of one that is open on one side the other side's; nan where it has no bound."""
    sides = [abs(bound - estimate.value) for bound in (estimate.low, estimate.high) if math.isfinite(bound)]
    if len(sides) == 2:
        return (estimate.high - estimate.low) / 2
    return sides[0] if sides and math.isfinite(sides[0]) else math.nan


def fixed(value: float, decimals: int) -> str:
    """To so many decimals, tens or hundreds where that is below zero; −0 is 0, and nan a dash."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{round(value, decimals) + 0:,.{max(0, decimals)}f}"  # + 0 takes the sign off a zero
    return text.replace("-", "−")


def exponent_of(value: float, digits: int) -> int:
    """Of ten, of the leading digit once rounded to so many: 0.0996 is 0.10 with two."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])
