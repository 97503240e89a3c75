"""What a report's page shows of numbers, verdicts, runs and tables: each as HTML, with nothing left unescaped."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from natattn.report.cells import cell_text, link_target
from natattn.report.page import SHORT, escaped, sortable
from natattn.report.table import Badge, Cell, Estimate, StudyTable
from natattn.statistics.paired import Verdict

MOST_LINKS = 6
MOST_LETTERS = 10  # of a run's folder in a link
_SIGNS: dict[Verdict, str] = {"supported": "✓", "refuted": "✗", "no effect": "=", "inconclusive": "?"}

# Blue and vermilion differ for every kind of colour vision; a sign and the word say it without colour. The contrast of
# each is at least 7.
STYLE = """
.badge { display: inline-block; padding: 0 0.5rem; border-radius: 0.7rem; border: 1px solid transparent;
  font-size: 0.8rem; font-weight: 600; white-space: nowrap; }
.badge.supported { background: #0a4b8c; color: #fff; } .badge.refuted { background: #8a3300; color: #fff; }
.badge.no-effect { background: #4d4d4d; color: #fff; } .badge.inconclusive { border: 1px dashed currentColor; }
@media (prefers-color-scheme: dark) {
  .badge.supported { background: #8fcbff; color: #00182e; } .badge.refuted { background: #ffb48f; color: #2b0f00; }
  .badge.no-effect { background: #c9c9c6; color: #141414; }
}
td.number { white-space: nowrap; } td.runs { min-width: 6rem; } td.runs a { margin-right: 0.4rem; }
.runs details { margin: 0; }
"""


def precise(value: int | float | Estimate) -> str:
    """Every digit, for those who point at it."""
    if not isinstance(value, Estimate):
        return repr(value.item()) if isinstance(value, np.generic) else repr(value)
    known = not (math.isnan(value.low) and math.isnan(value.high))
    return precise(value.value) + (f" [{precise(value.low)}, {precise(value.high)}]" if known else "")


def badge(verdict: Verdict) -> str:
    """The verdict as a word with a sign, and a colour."""
    return f'<span class="badge {escaped(verdict.replace(" ", "-"))}">{_SIGNS[verdict]} {escaped(verdict)}</span>'


def cell(value: Cell) -> str:
    """A cell of a table, that is sorted by its value and shows every digit to those who point at it."""
    text = escaped(cell_text(value))
    if isinstance(value, Badge):
        return f'<td class="short" data-value="{text}">{badge(value.verdict)}</td>'
    if isinstance(value, str) or value is None:
        return f"<td{_class(text)}>{text}</td>"
    number = value.value if isinstance(value, Estimate) else value
    return f'<td class="number" data-value="{_sort_key(number)}" title="{precise(value)}">{text}</td>'


def run_links(runs: Sequence[Path], base: Path) -> str:
    """Links to run folders, relative to the page's folder ``base``; all but the first few behind a click."""
    links = [
        f'<a href="{escaped(run_address(run, base))}" title="{escaped(_seen_from(base, run))}">'
        f"{escaped(_short_name(run))}</a>"
        for run in runs
    ]
    if len(links) <= MOST_LINKS:
        return " ".join(links)
    return f"<details><summary>{len(links)} runs</summary>{' '.join(links)}</details>"


def run_address(run: Path, base: Path) -> str:
    """Return the relative address of a run's folder, or of the record that it is packed in, for a page in ``base``."""
    target = link_target(run)
    return quote(os.fsencode(_seen_from(base, target))) + ("/" if target == run else "")


def study_table(table: StudyTable, base: Path) -> str:
    """A table with its title, its caption and, where it has any, the runs of each row."""
    has_runs = any(table.runs)
    rows = (
        "".join(map(cell, row)) + (f'<td class="runs">{run_links(runs, base)}</td>' if has_runs else "")
        for row, runs in zip(table.rows, table.runs, strict=True)
    )
    caption = f'<p class="caption">{escaped(table.caption)}</p>' if table.caption else ""
    headings = (*table.headings, *(["runs"] if has_runs else []))
    return f"<h3>{escaped(table.title)}</h3>{caption}{sortable(headings, rows)}"


def _seen_from(base: Path, run: Path) -> str:
    # Not resolved: a browser takes the dots of an address away before it asks the system, which follows links.
    return os.path.relpath(os.path.abspath(run), os.path.abspath(base))


def _class(text: str) -> str:
    return ' class="short"' if len(text) <= SHORT else ""


def _sort_key(value: int | float) -> str:
    """As the page's script reads it: what is no number is not known."""
    return "—" if math.isnan(value) else precise(value).replace("inf", "Infinity")


def _short_name(run: Path) -> str:
    name = run.name or str(run)
    return name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS]}…"
