"""Writers of tables: terminal, Markdown, LaTeX and CSV. (HTML is in page.py.)"""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from natattn.report.escaping import latex, markdown
from natattn.report.table import Badge, Cell, Estimate, Table, cell_text, link_target
from natattn.statistics.paired import Verdict
from natattn.storage.atomic import replacing

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

_MOST_LINKS = 6  # of a row in Markdown; the rest is counted
_NAME = re.compile(r"[A-Za-z0-9_]+")
_HASH = re.compile(r"[0-9a-f]{12,}")
_VERDICT_STYLES: Mapping[Verdict, str] = {
    "supported": "bold cyan",
    "refuted": "bold yellow",
    "no effect": "bold",
    "inconclusive": "dim",
}
# LaTeX: columns of longer text are paragraphs, longer tables break over pages.
_LONGEST_UNBROKEN = 28  # characters
_CHARACTER = 0.013  # width of a character in small print, about, as a share of the line
_ROWS_ON_A_PAGE = 20


def to_terminal(table: Table, *, compact: bool = False) -> "TerminalTable":
    """Return a rich table. Nothing in a cell is read as markup.

    Args:
        compact: leave out the lines between the cells.
    """
    from rich.table import Table as TerminalTable
    from rich.text import Text

    title, caption = Text(table.title, style="bold" if compact else ""), Text(table.caption)
    shown = TerminalTable(title=title, caption=caption, title_justify="left", caption_justify="left")
    if compact:
        shown.box, shown.pad_edge, shown.padding = None, False, (0, 2, 0, 0)
        caption.stylize("not italic not dim")
    for index, (heading, side) in enumerate(zip(table.headings, _alignment(table), strict=True)):
        shown.add_column(
            Text(heading), justify="right" if side == "r" else "left", overflow="fold",
            max_width=40 if compact and index == 0 else None,
        )  # fmt: skip
    for row in table.rows:
        styles = (_VERDICT_STYLES[cell.verdict] if isinstance(cell, Badge) else "" for cell in row)
        shown.add_row(*(Text(cell_text(cell), style=style) for cell, style in zip(row, styles, strict=True)))
    for text in (column.header for column in shown.columns):
        if isinstance(text, Text):
            text.highlight_words(["LEAKY"], "bold red")
    return shown


def to_markdown(table: Table, folder: Path) -> str:
    """Return title, pipe table and caption, with links from ``folder``, which holds the page, to the runs.

    The column of runs is left out if no row has any.
    """
    headings = [markdown(heading) for heading in table.headings]
    rules = ["---:" if side == "r" else "---" for side in _alignment(table)]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    if any(table.runs):
        headings, rules = [*headings, "runs"], [*rules, "---"]
        rows = [[*row, _markdown_links(runs, folder)] for row, runs in zip(rows, table.runs, strict=True)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, rules, *rows)]
    parts = [f"### {markdown(table.title)}", "\n".join(lines), markdown(table.caption)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, Badge):
        return f"**{cell.verdict}**" if cell.verdict in ("supported", "refuted") else cell.verdict
    return markdown(cell) if isinstance(cell, str) else cell_text(cell)


def _markdown_links(runs: Sequence[Path], folder: Path) -> str:
    links = []
    for run in runs[:_MOST_LINKS]:
        name = run.name[:8] if _HASH.fullmatch(run.name) else run.name
        links.append(f"[{markdown(name)}]({quote(os.fsencode(_relative(link_target(run), folder)))})")
    rest = len(runs) - _MOST_LINKS
    return ", ".join(links) + (f" +{rest}" if rest > 0 else "")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def to_latex(table: Table) -> str:
    """Return a booktabs table with caption and label tab:NAME; a longtable above twenty rows. Runs are left out."""
    headings = " & ".join(latex(heading) for heading in table.headings) + r" \\"
    # Without the braces, a bracket or star at the start of a row would be an argument of the \\ before it.
    rows = (" & ".join(latex(cell_text(cell)) for cell in row) for row in table.rows)
    body = "\n".join(f"{{}}{row} \\\\" for row in rows)
    caption = f"\\caption{{{latex(f'{table.title}. {table.caption}'.strip())}}}\n\\label{{tab:{table.name}}}"
    columns = _latex_columns(table)
    if len(table.rows) > _ROWS_ON_A_PAGE:
        return (
            f"% \\usepackage{{booktabs,longtable}}\n{{\\small\n\\begin{{longtable}}{{{columns}}}\n{caption} \\\\\n"
            f"\\toprule\n{headings}\n\\midrule\n\\endhead\n{body}\n\\bottomrule\n\\end{{longtable}}}}\n"
        )
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{table}}[htbp]\n\\centering\\small\n{caption}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{headings}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
        "\\end{table}\n"
    )


def _latex_columns(table: Table) -> str:
    """Numbers to the right, short text to the left, and long text in paragraphs that share the rest of the line."""
    widths = [
        max([len(cell_text(cell)) for cell in column] + [len(heading)])
        for heading, column in zip(table.headings, _columns(table), strict=True)
    ]
    long = [width if width > _LONGEST_UNBROKEN else 0 for width in widths]
    short = sum(width for width in widths if width <= _LONGEST_UNBROKEN)
    # Columns are two separations of 6 pt apart, about three characters.
    free = max(0.4, 1 - _CHARACTER * (short + 3 * len(widths)))
    roots = sum(width**0.5 for width in long)
    return "".join(
        f"p{{{free * width**0.5 / roots:.2f}\\linewidth}}" if width else side
        for width, side in zip(long, _alignment(table), strict=True)
    )


def to_csv(table: Table, folder: Path | None = None) -> str:
    """Return every digit as CSV. An estimate has three columns; the last column holds the runs' paths, if any.

    Args:
        folder: that the paths are relative to; None for paths as they are.
    """
    estimated = [any(isinstance(cell, Estimate) for cell in column) for column in _columns(table)]
    headings: list[str] = []
    for heading, is_estimated in zip(table.headings, estimated, strict=True):
        headings += [heading, f"{heading} low", f"{heading} high"] if is_estimated else [heading]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*headings, *(["runs"] if table.runs else [])])
    for index, row in enumerate(table.rows):
        cells: list[str] = []
        for cell, is_estimated in zip(row, estimated, strict=True):
            if isinstance(cell, Estimate):
                cells += [repr(float(number)) for number in (cell.value, cell.low, cell.high)]
            else:
                cells += [_csv_cell(cell), "", ""] if is_estimated else [_csv_cell(cell)]
        if table.runs:
            paths = (run.as_posix() if folder is None else _relative(run, folder) for run in table.runs[index])
            cells.append(";".join(paths))
        writer.writerow(cells)
    return text.getvalue()


def _csv_cell(cell: str | int | float | Badge | None) -> str:
    if isinstance(cell, Badge):
        return cell.verdict
    return "" if cell is None else repr(float(cell)) if isinstance(cell, float) else str(cell)


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """Write NAME.md, NAME.tex and NAME.csv of each table atomically; create the folder.

    Raises: ValueError for a name that is not a file name, or that two tables have; OSError if writing fails.
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
                # Names of runs need not be valid text: what cannot be encoded becomes a question mark.
                temporary.write_bytes(text.encode("utf-8", "replace"))


def _columns(table: Table) -> list[list[Cell]]:
    return [[row[index] for row in table.rows] for index in range(len(table.headings))]


def _alignment(table: Table) -> str:
    """ "l" or "r" for each column: as the table states, or to the right for numbers, of which some may be unknown."""
    known = ([cell for cell in column if cell is not None] for column in _columns(table))
    return table.align or "".join(
        "r" if column and all(isinstance(cell, int | float | Estimate) for cell in column) else "l" for column in known
    )
