"""A part of an analysis: what was found, as a table, pictures and numbers."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natattn.storage.atomic import replacing

Advance = Callable[[int], None]  # told how many things a measure has done more
SECTION_KEYS = ("name", "title", "findings", "tables", "maps", "pictures")
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Rows under headings; numbers are rounded only where they are shown."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_csv(self) -> str:
        """Every digit."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.headings, *self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class HeadMap:
    """One number for every head of every layer."""

    name: str
    unit: str
    layers: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure, and beside it the numbers that it shows. ``png`` stays in a file of its own."""

    name: str
    caption: str
    data: Table
    png: bytes = field(repr=False)

    def write(self, folder: Path) -> None:
        """As PNG, with its numbers as CSV. Raises: OSError where the folder cannot be written to."""
        for suffix, content in ((".png", self.png), (".csv", self.data.to_csv().encode())):
            with replacing(folder / f"{self.name}{suffix}") as temporary:
                temporary.write_bytes(content)


@dataclass(frozen=True)
class Section:
    """What one measure says. ``findings`` are sentences with numbers in them."""

    name: str
    title: str
    findings: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    maps: tuple[HeadMap, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures themselves, for strict JSON: what is no number becomes a word."""
        return {
            "name": self.name,
            "title": self.title,
            "findings": list(self.findings),
            "tables": [{"headings": list(t.headings), "rows": [_plain(row) for row in t.rows]} for t in self.tables],
            "maps": [
                {"name": m.name, "unit": m.unit, "layers": list(m.layers), "values": [_plain(row) for row in m.values]}
                for m in self.maps
            ],
            "pictures": [{"name": p.name, "caption": p.caption} for p in self.pictures],
        }


def shown(value: Cell, digits: int = 3) -> str:
    """A cell as it is read: numbers to some significant digits, nothing known as a dash."""
    if value is None or _is_nan(value):
        return "—"
    if isinstance(value, float):
        return f"{value:.{digits}g}".replace("-", "−").replace("inf", "∞")
    return str(value)


def interval_text(low: float, high: float) -> str:
    """[low, high]."""
    return f"[{shown(low)}, {shown(high)}]"


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table from lists."""
    return Table(tuple(headings), tuple(tuple(row) for row in rows))


def head_map(name: str, layers: Sequence[int], values: Iterable[Iterable[float]], unit: str = "") -> HeadMap:
    """A map from values [layers, heads]."""
    return HeadMap(name, unit, tuple(layers), tuple(tuple(map(float, row)) for row in values))


def _is_nan(value: Cell) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(row: Iterable[Cell]) -> list[Cell]:
    return [None if _is_nan(value) else str(value) if value in (math.inf, -math.inf) else value for value in row]
