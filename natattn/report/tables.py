"""A study's tables as terminal, Markdown, LaTeX and CSV; the claims ledger and its summary as tables."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from natattn.report.cells import cell_text, link_target
from natattn.report.escaping import latex, markdown
from natattn.report.table import Badge, Cell, Estimate, StudyTable
from natattn.reproduce.claims import Claim
from natattn.reproduce.ledger import by_claim, strongest, tally
from natattn.reproduce.results import StudyResult, overall
from natattn.statistics.paired import Verdict
from natattn.storage.atomic import replacing

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

RUNS = "runs"  # heading of the column of links
NOT_MEASURED = "not measured"
MOST_LINKS = 6  # in a row; the rest is counted
_NAME = re.compile(r"[A-Za-z0-9_]+")
_HASH = re.compile(r"[0-9a-f]{12,}")
_VERDICT_STYLES: Mapping[Verdict, str] = {
    "supported": "bold cyan",
    "refuted": "bold yellow",
    "no effect": "bold",
    "inconclusive": "dim",
}
_LONGEST_UNBROKEN = 28  # characters of a LaTeX cell that stays on one line
_CHARACTER = 0.013  # of the line's width, about, in small print
_ROWS_ON_A_PAGE = 20


def to_terminal(table: StudyTable) -> "TerminalTable":
    """A rich table; nothing in a cell is read as markup."""
    from rich.table import Table as TerminalTable
    from rich.text import Text

    shown = TerminalTable(title=Text(table.title), caption=Text(table.caption), title_justify="left",
                          caption_justify="left")  # fmt: skip
    for heading, is_numeric in zip(table.headings, _numeric_columns(table), strict=True):
        shown.add_column(Text(heading), justify="right" if is_numeric else "left", overflow="fold")
    for row in table.rows:
        cells = [
            Text(cell_text(cell), style=_VERDICT_STYLES[cell.verdict] if isinstance(cell, Badge) else "")
            for cell in row
        ]
        shown.add_row(*cells)
    return shown


def to_markdown(table: StudyTable, folder: Path) -> str:
    """Title, pipe table and caption of a page that lies in ``folder``, with links from there to the runs.

    The column of runs is left out where no row has any. A row links at most ``MOST_LINKS`` of them.
    """
    headings = [markdown(heading) for heading in table.headings]
    rules = ["---:" if is_numeric else "---" for is_numeric in _numeric_columns(table)]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    if any(table.runs):
        headings, rules = [*headings, RUNS], [*rules, "---"]
        rows = [[*row, _links(runs, folder)] for row, runs in zip(rows, table.runs, strict=True)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, rules, *rows)]
    parts = [f"### {markdown(table.title)}", "\n".join(lines), markdown(table.caption)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, Badge):
        return f"**{cell.verdict}**" if cell.verdict in ("supported", "refuted") else cell.verdict
    return markdown(cell) if isinstance(cell, str) else cell_text(cell)


def _links(runs: Sequence[Path], folder: Path) -> str:
    links = []
    for run in runs[:MOST_LINKS]:
        name = run.name[:8] if _HASH.fullmatch(run.name) else run.name
        links.append(f"[{markdown(name)}]({quote(os.fsencode(_relative(link_target(run), folder)))})")
    rest = len(runs) - MOST_LINKS
    return ", ".join(links) + (f" +{rest}" if rest > 0 else "")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def to_latex(table: StudyTable) -> str:
    """A booktabs table with caption and label tab:NAME; of more than twenty rows a longtable. The runs are left out."""
    texts = [[latex(cell_text(cell)) for cell in row] for row in table.rows]
    headings = " & ".join(latex(heading) for heading in table.headings) + r" \\"
    # A row that began with a bracket or a star would be read as an argument of the \\ before it.
    body = "\n".join(f"{{}}{' & '.join(row)} \\\\" for row in texts)
    caption = f"\\caption{{{latex(f'{table.title}. {table.caption}'.strip())}}}\n\\label{{tab:{table.name}}}"
    columns, is_long = _latex_columns(table), len(table.rows) > _ROWS_ON_A_PAGE
    needs = r"% \usepackage{booktabs,longtable}" if is_long else r"% \usepackage{booktabs}"
    if is_long:
        return (
            f"{needs}\n{{\\small\n\\begin{{longtable}}{{{columns}}}\n{caption} \\\\\n\\toprule\n{headings}\n\\midrule\n"
            f"\\endhead\n{body}\n\\bottomrule\n\\end{{longtable}}}}\n"
        )
    return (
        f"{needs}\n\\begin{{table}}[htbp]\n\\centering\\small\n{caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"{headings}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _latex_columns(table: StudyTable) -> str:
    """Numbers to the right, short text to the left, and long text in paragraphs that share the rest of the line."""
    widths = [
        max([len(cell_text(cell)) for cell in column] + [len(heading)])
        for heading, column in zip(table.headings, _columns(table), strict=True)
    ]
    long = [width if width > _LONGEST_UNBROKEN else 0 for width in widths]
    short = sum(width for width, is_long in zip(widths, long, strict=True) if not is_long)
    # Columns are two separations of 6 pt apart, about three characters.
    free = max(0.4, 1 - _CHARACTER * (short + 3 * len(widths)))
    roots = sum(width**0.5 for width in long)
    kinds = ["r" if is_numeric else "l" for is_numeric in _numeric_columns(table)]
    return "".join(
        f"p{{{free * width**0.5 / roots:.2f}\\linewidth}}" if width else kind
        for width, kind in zip(long, kinds, strict=True)
    )


def to_csv(table: StudyTable, folder: Path | None = None) -> str:
    """Every digit. An estimate is three columns; the last column has the runs' paths, separated by semicolons.

    Args:
        folder: that the paths are written relative to; None for paths as they are.
    """
    estimated = [any(isinstance(cell, Estimate) for cell in column) for column in _columns(table)]
    headings: list[str] = []
    for heading, is_estimated in zip(table.headings, estimated, strict=True):
        headings += [heading, f"{heading} low", f"{heading} high"] if is_estimated else [heading]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*headings, RUNS])
    for row, runs in zip(table.rows, table.runs, strict=True):
        cells: list[str] = []
        for cell, is_estimated in zip(row, estimated, strict=True):
            if isinstance(cell, Estimate):
                cells += [repr(float(number)) for number in (cell.value, cell.low, cell.high)]
            else:
                cells += [_plain(cell), "", ""] if is_estimated else [_plain(cell)]
        paths = [run.as_posix() if folder is None else _relative(link_target(run), folder) for run in runs]
        writer.writerow([*cells, ";".join(paths)])
    return text.getvalue()


def _plain(cell: str | int | float | Badge | None) -> str:
    if isinstance(cell, Badge):
        return cell.verdict
    return "" if cell is None else repr(float(cell)) if isinstance(cell, float) else str(cell)


def write_tables(folder: Path, tables: Iterable[StudyTable]) -> None:
    """NAME.md, NAME.tex and NAME.csv of each, whole or not at all; the folder is made.

    Raises: ValueError for a name that is no file's, or that two tables have; OSError where nothing can be written.
    """
    kept = list(tables)
    names = [table.name for table in kept]
    if unfit := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"names of tables: {unfit}: letters, digits and underscores only")
    if len(set(map(str.lower, names))) < len(names):
        raise ValueError(f"two tables have one name: {sorted(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    for table in kept:
        texts = {"md": to_markdown(table, folder), "tex": to_latex(table), "csv": to_csv(table, folder)}
        for suffix, text in texts.items():
            with replacing(folder / f"{table.name}.{suffix}") as temporary:
                # Names of runs need not be text: what cannot be written is a question mark.
                temporary.write_bytes(text.encode("utf-8", "replace"))


def _columns(table: StudyTable) -> list[list[Cell]]:
    return [[row[place] for row in table.rows] for place in range(len(table.headings))]


def _numeric_columns(table: StudyTable) -> list[bool]:
    """Columns of numbers, where some may be unknown."""
    known = [[cell for cell in column if cell is not None] for column in _columns(table)]
    return [bool(column) and all(isinstance(cell, int | float | Estimate) for cell in column) for column in known]


def ledger_table(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> StudyTable:
    """A row for every finding, in the order of the claims; a claim without one is there as not measured.

    Raises: ValueError for a finding of a claim that is not among them.
    """
    rows: list[tuple[Cell, ...]] = []
    runs: list[tuple[Path, ...]] = []
    for claim, findings in by_claim(results, claims):
        head = (claim.id, claim.statement)
        if not findings:
            rows.append((*head, "", "", None, "", None, None, NOT_MEASURED, ""))
            runs.append(())
        for finding in findings:
            rows.append(
                (*head, finding.what, finding.where, finding.estimate, finding.unit, finding.count,
                 finding.p_value, Badge(finding.verdict), finding.note)
            )  # fmt: skip
            runs.append(finding.runs)
    headings = ("claim", "statement", "what", "where", "effect", "unit", "n", "p", "verdict", "note")
    caption = (
        "Every measurement that bears on a claim, with the interval that its verdict belongs to (95 %, simultaneous "
        "within its study's table); n counts seeds or models; p is adjusted as that table says."
    )
    return StudyTable("ledger", "Claims and what was measured", caption, headings, tuple(rows), tuple(runs))


def summary_table(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> StudyTable:
    """A row for every claim: what all measurements say together, and the strongest of them.

    Raises: as ``ledger_table``.
    """
    rows: list[tuple[Cell, ...]] = []
    runs: list[tuple[Path, ...]] = []
    for claim, findings in by_claim(results, claims):
        if not findings:
            rows.append((claim.id, claim.statement, NOT_MEASURED, "", "", None, "", None))
            runs.append(())
            continue
        first = strongest(findings)
        rows.append(
            (claim.id, claim.statement, Badge(overall(findings)), tally(findings), f"{first.what} ({first.where})",
             first.estimate, first.unit, first.count)
        )  # fmt: skip
        runs.append(first.runs)
    headings = ("claim", "statement", "verdict", "findings", "the strongest", "its effect", "unit", "n")
    caption = (
        "The verdict is that of all measurements of a claim where they agree; refuted where one refutes it and none "
        "supports it; else inconclusive. The strongest is the one of that verdict whose effect is the most half-widths "
        "of its interval from what is claimed; a counterexample comes before, and for no effect repetitions count."
    )
    return StudyTable("claims", "The claims", caption, headings, tuple(rows), tuple(runs))
