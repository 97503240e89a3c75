"""The claims ledger: findings by claim, the strongest finding of each claim, and tables of both."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO, get_args

from natattn.report.table import Badge, Cell, Finding, Table, half_width
from natattn.report.writers import to_terminal
from natattn.reproduce.claims import CLAIMS, Claim
from natattn.reproduce.results import StudyResult, overall
from natattn.statistics.paired import Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NOT_MEASURED = "not measured"
_WIDTH_WITHOUT_TERMINAL = 160
_MOST_LINES = 8  # most lines about missing runs


def by_claim(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> list[tuple[Claim, tuple[Finding, ...]]]:
    """Return every claim in its order with its findings (possibly none).

    Raises: ValueError for a finding of an unknown claim, which would otherwise be lost.
    """
    found: dict[str, list[Finding]] = {claim: [] for claim in claims}
    for result in results:
        for finding in result.findings:
            if finding.claim not in found:
                raise ValueError(f"study {result.name}: a finding of {finding.claim!r}, which the ledger does not have")
            found[finding.claim].append(finding)
    return [(claim, tuple(found[name])) for name, claim in claims.items()]


def claims_of(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> dict[str, Claim]:
    """Return the claims that these studies test or have findings of; for all studies, also untested claims."""
    names = {result.name for result in results}
    if names >= {claim.study for claim in claims.values()} - {""}:
        return dict(claims)
    found = {finding.claim for result in results for finding in result.findings}
    return {name: claim for name, claim in claims.items() if claim.study in names or name in found}


def standardised(finding: Finding) -> float:
    """Return the effect minus ``Finding.against``, in half-widths of its interval; nan without an interval.

    Beyond ±1, a symmetric interval excludes ``Finding.against``.
    """
    half = half_width(finding.estimate)
    return (finding.estimate.value - finding.against) / half if half > 0 else math.nan


def strongest(findings: Sequence[Finding]) -> Finding:
    """Return the finding that supports the verdict of all the most.

    Findings without a value, or with another verdict, are considered only if there are no others. The strongest has the
    largest ``standardised``. For ``refuted``, a finding without an interval (a counterexample) comes first; for
    ``no effect``, the one with the most repetitions. Of equals, the first.

    Raises: ValueError for no findings.
    """
    together = overall(findings)
    known = [finding for finding in findings if not math.isnan(finding.estimate.value)] or list(findings)
    kept = [finding for finding in known if finding.verdict == together] or known

    def weight(finding: Finding) -> float:
        size = abs(standardised(finding))
        if together == "no effect":
            return float(finding.count)
        if math.isnan(size):
            return math.inf if together == "refuted" else -1.0
        return size

    return max(kept, key=weight)


def tally(findings: Sequence[Finding]) -> str:
    """Return the number of findings with each verdict, such as "2 supported, 1 refuted"."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def ledger_table(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> Table:
    """Return a row for every finding, in the order of the claims; a claim without one is listed as not measured.

    Raises: as ``by_claim``.
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
    return Table("ledger", "Claims and what was measured", caption, headings, tuple(rows), tuple(runs))


def summary_table(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> Table:
    """Return a row for every claim: the verdict of all measurements together, and the strongest of them.

    Raises: as ``by_claim``.
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
    return Table("claims", "The claims", caption, headings, tuple(rows), tuple(runs))


def print_results(results: Sequence[StudyResult], *, stream: TextIO) -> None:
    """Print one study's tables and its part of the ledger, or a summary of several studies; then missing runs."""
    from rich.console import Console

    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
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
        for line in lines[:_MOST_LINES]:
            console.print(line, soft_wrap=True)
        if len(lines) > _MOST_LINES:
            console.print(f"and {len(lines) - _MOST_LINES} more lines of that kind: see the report")
