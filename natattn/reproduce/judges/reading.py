"""Cells of an analysis by the names of their headings; what is not there is nan, never an error."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from natattn.analysis.verdicts import AnalysisResult, Group, known, over_seeds
from natattn.report.table import Estimate
from natattn.statistics.paired import mean

__all__ = [
    "bounds",
    "count",
    "is_rounded",
    "known",
    "layer_means",
    "mean_cell",
    "number",
    "row_of",
    "rows_of",
    "value_of",
]

Row = Mapping[str, Any]
Bounds = tuple[float, float]
UNKNOWN: Bounds = (math.nan, math.nan)
_INTERVAL = re.compile(r"^(?P<value>[^\[]*)\[(?P<low>[^,]+),\s*(?P<high>[^\]]+)\]$")


def rows_of(analysed: AnalysisResult, section: str, *headings: str) -> list[Row]:
    """Rows of the first table of a section that has all of these headings; none where there is no such table."""
    for table in analysed.sections.get(section, {}).get("tables", ()):
        if set(headings) <= set(table["headings"]):
            return [dict(zip(table["headings"], row, strict=False)) for row in table["rows"]]
    return []


def row_of(analysed: AnalysisResult, section: str, heading: str, value: object, **others: object) -> Row:
    """The row of a table with this value under a heading, and others under theirs; empty where there is none."""
    for row in rows_of(analysed, section, heading, *others):
        if row[heading] == value and all(row[name] == wanted for name, wanted in others.items()):
            return row
    return {}


def number(row: Row, heading: str) -> float:
    """A cell as a number: ``to_json`` writes infinities as words and what is no number as null."""
    value = row.get(heading)
    if isinstance(value, bool) or value is None:
        return math.nan
    return float(value) if isinstance(value, int | float) else _read(str(value))


def count(row: Row, heading: str) -> int:
    """A cell as a whole number; 0 where it is none."""
    value = number(row, heading)
    return int(value) if math.isfinite(value) else 0


def mean_cell(group: Group, rows: Sequence[Row], heading: str) -> Estimate:
    """Return ``over_seeds`` of the numbers under a heading, with one row per member."""
    return over_seeds(group, [number(row, heading) for row in rows])


def bounds(row: Row, low: str = "low", high: str = "high", *, text: str = "95 % interval") -> Bounds:
    """The interval under two headings; of analyses kept before they were there, the one that the page shows.

    That one is a cell too, "[low, high]" or "value [low, high]", of three digits.
    """
    found = number(row, low), number(row, high)
    if low in row and high in row:
        return found
    match = _INTERVAL.match(str(row.get(text, "")))
    return UNKNOWN if match is None else (_read(match["low"]), _read(match["high"]))


def value_of(row: Row, heading: str, *, text: str) -> float:
    """The number under a heading; of analyses kept before it was there, that before the interval of a shown cell."""
    if heading in row:
        return number(row, heading)
    match = _INTERVAL.match(str(row.get(text, "")))
    return number(row, text) if match is None else _read(match["value"])


def is_rounded(row: Row, low: str = "low") -> bool:
    """Return whether ``bounds`` has to use the rounded digits of a page."""
    return bool(row) and low not in row


def layer_means(analysed: AnalysisResult, section: str, name: str) -> dict[int, float]:
    """Means over heads of a map of heads, {layer: mean}; empty where there is no such map."""
    for found in analysed.sections.get(section, {}).get("maps", ()):
        if found["name"] == name:
            return {
                int(layer): mean([value for value in values if isinstance(value, int | float)])
                for layer, values in zip(found["layers"], found["values"], strict=False)
            }
    return {}


def _read(text: str) -> float:
    try:
        return float(text.strip().replace("−", "-").replace("∞", "inf"))
    except ValueError:
        return math.nan
