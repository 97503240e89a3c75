"""What `natattn reproduce` prints: the tables of one study, or the ledger of several."""

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console

from natattn.report.tables import ledger_table, summary_table, to_terminal
from natattn.reproduce.claims import CLAIMS
from natattn.reproduce.ledger import claims_of
from natattn.reproduce.results import StudyResult

WIDTH_WITHOUT_TERMINAL = 160
MOST_LINES = 8  # of what is missing


def print_results(results: Sequence[StudyResult], *, stream: TextIO) -> None:
    """Tables of a single study with its part of the ledger; of several the summary; and what is missing or failed."""
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    console = Console(file=stream, width=width, markup=False, highlight=False)
    claims = claims_of(results, CLAIMS)
    if len(results) == 1:
        for table in results[0].tables:
            console.print(to_terminal(table))
            console.print()
        console.print(to_terminal(ledger_table(results, claims)))
    else:
        console.print(to_terminal(summary_table(results, claims)))
    for result in results:
        lines = [*result.missing, *(f"failed: {failure}" for failure in result.failures)]
        for line in lines[:MOST_LINES]:
            console.print(line, soft_wrap=True)
        if len(lines) > MOST_LINES:
            console.print(f"and {len(lines) - MOST_LINES} more lines of that kind: see the report")
