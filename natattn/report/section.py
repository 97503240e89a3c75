"""One section of an analysis page: findings, tables, head maps and figures."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natattn.report.table import Cell as Cell
from natattn.report.table import Table as Table
from natattn.report.table import cell_text
from natattn.report.writers import to_csv
from natattn.storage.atomic import replacing

Advance = Callable[[int], None]  # called with the number of steps that a measurement has completed


@dataclass(frozen=True)
class HeadMap:
    """One number for every head of every layer."""

    name: str
    unit: str
    layers: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, with the numbers that it shows."""

    name: str
    caption: str
    data: Table
    png: bytes = field(repr=False)

    def write(self, folder: Path) -> None:
        """Write NAME.png and NAME.csv atomically. Raises: OSError if the folder cannot be written to."""
        for suffix, content in ((".png", self.png), (".csv", to_csv(self.data).encode())):
            with replacing(folder / f"{self.name}{suffix}") as temporary:
                temporary.write_bytes(content)


@dataclass(frozen=True)
class Section:
    """The result of one measurement on a page. ``findings`` are sentences with numbers."""

    name: str
    title: str
    findings: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    maps: tuple[HeadMap, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything except the figures for strict JSON: nan becomes null and infinities become words."""
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
    """Return a cell as text, numbers with ``digits`` significant digits."""
    return cell_text(value, digits)


def interval_text(low: float, high: float) -> str:
    """Return "[low, high]"."""
    return f"[{shown(low)}, {shown(high)}]"


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Return an untitled table."""
    return Table("", "", "", tuple(headings), tuple(tuple(row) for row in rows))


def head_map(name: str, layers: Sequence[int], values: Iterable[Iterable[float]], unit: str = "") -> HeadMap:
    """Return a map of values [layers, heads]."""
    return HeadMap(name, unit, tuple(layers), tuple(tuple(map(float, row)) for row in values))


def _is_nan(value: Cell) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(row: Iterable[Cell]) -> list[Cell]:
    return [None if _is_nan(value) else str(value) if value in (math.inf, -math.inf) else value for value in row]
