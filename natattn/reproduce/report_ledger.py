"""The claims on a report's page: what was measured of each, what that says, and what has not been measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from natattn.analysis.pictures.page import escaped, fact_list, sortable
from natattn.reproduce.cells import number_text
from natattn.reproduce.claims import Claim
from natattn.reproduce.report_cells import badge, cell, precise, run_links
from natattn.reproduce.results import Badge, Cell, Finding, StudyResult, overall

STYLE = """
section.claim { margin: 1.6rem 0; } .claim h3 .badge { margin-left: 0.5rem; vertical-align: 0.05rem; }
.claim p { margin: 0.3rem 0; max-width: 46rem; }
details { margin: 0.3rem 0; } summary { cursor: pointer; } .claim summary { color: var(--faint); font-size: 0.85rem; }
.chosen dd { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.9rem; }
.chosen dd:first-of-type { font-family: ui-monospace, monospace; }
"""
HEADINGS = ("what", "where", "effect", "unit", "n", "p", "verdict", "note", "study", "runs")
UNKNOWN = "This claim is not in the ledger."


def ledger(results: Sequence[StudyResult], claims: Mapping[str, Claim], base: Path) -> str:
    """All claims: those with findings and their verdicts first, then those that nothing on this page measures."""
    findings = by_claim(results, claims)
    if not findings and not claims:
        return ""
    rows = (
        f'<td class="short"><a href="#{_anchor(name)}">{escaped(name)}</a></td>'
        f"{cell(claims[name].statement if name in claims else UNKNOWN)}{cell(Badge(overall(found)))}"
        f"{cell(len(found))}{cell(', '.join(dict.fromkeys(f.study for f in found)))}"
        for name, found in findings.items()
    )
    table = sortable(("claim", "statement", "verdict", "measurements", "study"), rows) if findings else ""
    measured = "".join(_claim(name, claims.get(name), found, base) for name, found in findings.items())
    others = "".join(
        f'<details class="claim" id="{_identifier(name)}">'
        f"<summary>{escaped(name)}: {escaped(claim.statement)}</summary>{_chosen(claim)}</details>"
        for name, claim in claims.items()
        if name not in findings
    )
    not_measured = f"<h3>Not measured here</h3>{others}" if others else ""
    return f'<h2 id="claims">Claims</h2>{table}{measured}{not_measured}'


def by_claim(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> dict[str, list[Finding]]:
    """The findings of each claim that has any, in the order of the ledger; those that are not in it come last."""
    found: dict[str, list[Finding]] = {name: [] for name in claims}
    for result in results:
        for finding in result.findings:
            found.setdefault(finding.claim, []).append(finding)
    return {name: findings for name, findings in found.items() if findings}


def _claim(name: str, claim: Claim | None, findings: Sequence[Finding], base: Path) -> str:
    statement = UNKNOWN if claim is None else claim.statement
    rows = (_finding(finding, base) for finding in findings)
    chosen = f"<details><summary>formula and definition</summary>{_chosen(claim)}</details>" if claim else ""
    return (
        f'<section class="claim" id="{_identifier(name)}"><h3>{escaped(name)} {badge(overall(findings))}</h3>'
        f"<p>{escaped(statement)}</p>{chosen}{sortable(HEADINGS, rows)}</section>"
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
