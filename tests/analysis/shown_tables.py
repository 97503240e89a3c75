"""What tables and reports of runs look like where they are printed."""

import io
from pathlib import Path

from rich.console import Console

from natattn.analysis.summary import print_report
from natattn.report.table import Table
from natattn.report.writers import to_terminal


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def text_of(table: Table, width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(to_terminal(table, compact=True))
    return stream.getvalue()


def report(*paths: Path | str) -> str:
    stream = io.StringIO()
    print_report([str(path) for path in paths], stream=stream)
    return stream.getvalue()


def cells(text: str, title: str) -> list[str]:
    """The cells of the first row with that title: what stands after it."""
    found = next(line for line in text.splitlines() if line.strip().startswith(title))
    return [cell.strip() for cell in found.strip().removeprefix(title).split("  ") if cell.strip()]
