"""The doctor's table, and a line for everything that is not well."""

from collections.abc import Sequence
from typing import TextIO

from natattn.doctor.findings import Finding

_WIDTH_WITHOUT_TERMINAL = 160
_STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


def show(findings: Sequence[Finding], stream: TextIO) -> None:
    """Print the table; as plain lines where rich is what is broken."""
    try:
        _table(findings, stream)
    except ImportError:
        for finding in findings:
            print(f"{finding.part:<10} {finding.state:<6} {finding.what}: {finding.found}", file=stream)
    for finding in findings:
        if finding.state != "ok":
            print(f"{finding.state}: {finding.what}: {finding.found} → {finding.advice}", file=stream)
    broken, notes = (sum(finding.state == state for finding in findings) for state in ("broken", "note"))
    said = f"{broken} broken" if broken else "all is well"
    print(f"natattn doctor: {said}{f', {notes} to note' if notes else ''}", file=stream)


def _table(findings: Sequence[Finding], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("part", "", "what", "found")
    part = ""
    for finding in findings:
        if part and finding.part != part:
            table.add_section()
        shown = "" if finding.part == part else finding.part
        part = finding.part
        table.add_row(shown, Text(finding.state, _STYLES[finding.state]), Text(finding.what), Text(finding.found))
    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    Console(file=stream, highlight=False, width=width).print(table)
