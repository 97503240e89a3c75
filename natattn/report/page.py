"""Self-contained HTML pages, rendered from the templates next to this file.

A page opens offline, in light and dark, loads nothing and runs no script but its own. Jinja2 escapes every string.
"""

import base64
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateRuntimeError

from natattn.report.section import HeadMap, Section
from natattn.report.table import NOTHING, Estimate, cell_text, link_target
from natattn.statistics.paired import Verdict

MOST_LINKS = 6  # run links in a row that are shown without a click
MOST_LINES = 12  # lines about missing runs that are shown without a click
_SIGNS: Mapping[Verdict, str] = {"supported": "✓", "refuted": "✗", "no effect": "=", "inconclusive": "?"}
_SHORT = 28  # characters of a cell that stays on one line
_LETTERS = 10  # of a run's folder name in a link
# The ends and the middle of the colour map cividis: dark blue, grey, yellow.
_STOPS = ((0, 32, 77), (124, 123, 120), (255, 234, 70))


def render_page(
    template: str, title: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any
) -> str:
    """Return a page as text.

    Args:
        template: file name in templates/; it extends page.html.
        title: heading of the page.
        styles, scripts: file names in templates/, inlined after page.css and page.js.
        values: variables of the template.

    Raises: ValueError for values that the template cannot show.
    """
    style, script = (
        "\n".join((files(__package__) / "templates" / name).read_text("utf-8") for name in names)
        for names in (("page.css", *styles), ("page.js", *scripts))
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values |= {"title": title, "style": style, "script": script, "script_digest": digest}
    try:
        return _environment().get_template(template).render(values)
    except TemplateRuntimeError as error:
        raise ValueError(f"{template}: {error}") from error


def render_analysis(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Return the page of an analysis, with ``facts`` ({name: value}) at its top."""
    return render_page("analysis.html", title, facts=facts, sections=sections)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("natattn.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "base64": lambda content: base64.b64encode(content).decode(),
        "cell_view": cell_view,
        "heat_rows": heat_rows,
        "run_links": run_links,
    }
    environment.globals |= {"signs": _SIGNS, "most_links": MOST_LINKS, "most_lines": MOST_LINES}
    return environment


@dataclass(frozen=True)
class CellView:
    """A cell of a page: its text, and the attributes of its element."""

    text: str
    attributes: Mapping[str, str]
    is_code: bool = False


def cell_view(value: str | int | float | Estimate | None, digits: int) -> CellView:
    """Return a cell other than a badge, sorted by its value and with every digit on hover."""
    if isinstance(value, str) or value is None:
        text = cell_text(value)
        is_code = "torch." in text
        return CellView(text, {"class": "short"} if len(text) <= _SHORT and not is_code else {}, is_code)
    number = value.value if isinstance(value, Estimate) else value
    key = NOTHING if math.isnan(number) else _precise(number).replace("inf", "Infinity")  # as page.js reads it
    return CellView(cell_text(value, digits), {"class": "number", "data-value": key, "title": _precise(value)})


def _precise(value: int | float | Estimate) -> str:
    """Every digit of a number."""
    if isinstance(value, Estimate):
        is_known = not (math.isnan(value.low) and math.isnan(value.high))
        return _precise(value.value) + (f" [{_precise(value.low)}, {_precise(value.high)}]" if is_known else "")
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)


@dataclass(frozen=True)
class RunLink:
    """A link to a run folder: its relative address, its path as text and a short name."""

    address: str
    path: str
    name: str


def run_links(runs: Sequence[Path], base: Path) -> list[RunLink]:
    """Return links to run folders, relative to the page's folder ``base``."""
    names = (run.name or str(run) for run in runs)
    return [
        RunLink(run_address(run, base), relative(run, base), name[:_LETTERS] + "…" * (len(name) > _LETTERS))
        for run, name in zip(runs, names, strict=True)
    ]


def run_address(run: Path, base: Path) -> str:
    """Return the relative address of a run's folder, or of the record that it is packed in, for a page in ``base``."""
    target = link_target(run)
    return quote(os.fsencode(relative(target, base))) + ("/" if target == run else "")


def relative(run: Path, base: Path) -> str:
    """Return the path of ``run`` seen from ``base``.

    Links are not resolved: a browser removes the dots of an address before it asks the system, which follows links.
    """
    return os.path.relpath(os.path.abspath(run), os.path.abspath(base))


@dataclass(frozen=True)
class HeatCell:
    """One head of a heat map."""

    text: str
    hover: str
    background: str
    colour: str


def heat_rows(head_map: HeadMap) -> Iterator[tuple[int, list[HeatCell]]]:
    """Yield each layer of a head map with its cells, coloured by their values."""
    known = [value for row in head_map.values for value in row if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    for layer, values in zip(head_map.layers, head_map.values, strict=True):
        cells = []
        for head, value in enumerate(values):
            hover = f"layer {layer}, head {head}: {value!r} {head_map.unit}".strip()
            if math.isfinite(value):
                colours = _colours((value - low) / (high - low) if high > low else 0.5)
                cells.append(HeatCell(cell_text(value, 2), hover, *colours))
            else:
                cells.append(HeatCell(NOTHING, hover, "none", "inherit"))
        yield layer, cells


def _colours(share: float) -> tuple[str, str]:
    """The background at a share of the scale, and a text colour that is readable on it."""
    position = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(position), len(_STOPS) - 2)
    mixed = (round(a + (b - a) * (position - index)) for a, b in zip(_STOPS[index], _STOPS[index + 1], strict=True))
    return f"rgb({','.join(map(str, mixed))})", "#000" if share > 0.55 else "#fff"
