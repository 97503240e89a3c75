"""The claims on a report's page: what was measured of each, what that says, and what has not been measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from natattn.report.cells import number_text
from natattn.report.html import badge, cell, precise, run_links
from natattn.report.page import escaped, fact_list, sortable
from natattn.report.table import Badge, Cell, Finding
from natattn.reproduce.claims import Claim
from natattn.reproduce.ledger import by_claim
from natattn.reproduce.results import StudyResult, overall

STYLE = """
section.claim { margin: 1.6rem 0; } .claim h3 .badge { margin-left: 0.5rem; vertical-align: 0.05rem; }
.claim p { margin: 0.3rem 0; max-width: 46rem; }
details { margin: 0.3rem 0; } summary { cursor: pointer; } .claim summary { color: var(--faint); font-size: 0.85rem; }
.chosen dd { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.9rem; }
.chosen dd:first-of-type { font-family: ui-monospace, monospace; }
"""
HEADINGS = ("what", "where", "effect", "unit", "n", "p", "verdict", "note", "study", "runs")


def ledger(results: Sequence[StudyResult], claims: Mapping[str, Claim], base: Path) -> str:
    """All claims: those with findings and their verdicts first, then those that nothing on this page measures.

    Raises: ValueError for a finding of a claim that is not among ``claims``.
    """
    if not claims:
        return ""
    found = by_claim(results, claims)
    known = [(claim, findings) for claim, findings in found if findings]
    rows = (
        f'<td class="short"><a href="#{_anchor(claim.id)}">{escaped(claim.id)}</a></td>'
        f"{cell(claim.statement)}{cell(Badge(overall(findings)))}"
        f"{cell(len(findings))}{cell(', '.join(dict.fromkeys(f.study for f in findings)))}"
        for claim, findings in known
    )
    table = sortable(("claim", "statement", "verdict", "measurements", "study"), rows) if known else ""
    measured = "".join(_claim(claim, findings, base) for claim, findings in known)
    others = "".join(
        f'<details class="claim" id="{_identifier(claim.id)}">'
        f"<summary>{escaped(claim.id)}: {escaped(claim.statement)}</summary>{_chosen(claim)}</details>"
        for claim, findings in found
        if not findings
    )
    not_measured = f"<h3>Not measured here</h3>{others}" if others else ""
    return f'<h2 id="claims">Claims</h2>{table}{measured}{not_measured}'


def _claim(claim: Claim, findings: Sequence[Finding], base: Path) -> str:
    rows = (_finding(finding, base) for finding in findings)
    return (
        f'<section class="claim" id="{_identifier(claim.id)}"><h3>{escaped(claim.id)} {badge(overall(findings))}</h3>'
        f"<p>{escaped(claim.statement)}</p><details><summary>formula and definition</summary>{_chosen(claim)}</details>"
        f"{sortable(HEADINGS, rows)}</section>"
    )


def _chosen(claim: Claim) -> str:
    """What is tested, and what had to be chosen for it; the formula comes first."""
    others = {"definition": claim.definition, "source": claim.source, "tested by": claim.study}
    facts = {"formula": claim.formula} | {name: fact for name, fact in others.items() if fact}
    return f'<div class="chosen">{fact_list(facts)}</div>'


def _finding(finding: Finding, base: Path) -> str:
    p = finding.p_value
    p_cell = (
        cell(None)
        if p is None
        else f'<td class="number" data-value="{precise(p)}" title="{precise(p)}">{number_text(p, 2)}</td>'
    )
    before: tuple[Cell, ...] = (finding.what, finding.where, finding.estimate, finding.unit, finding.count)
    after: tuple[Cell, ...] = (Badge(finding.verdict), finding.note, finding.study)
    cells = (*map(cell, before), p_cell, *map(cell, after))
    return "".join(cells) + f'<td class="runs">{run_links(finding.runs, base)}</td>'


def _identifier(name: str) -> str:
    return escaped(f"claim-{name}")


def _anchor(name: str) -> str:
    return escaped(quote(f"claim-{name}"))
