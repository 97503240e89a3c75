"""The theorems: P1 to P6 and D3', D4', D5' of the ledger, by the search for counterexamples (section ``theorems``).

A statement is ``refuted`` by its smallest counterexample. A search cannot prove: without one it is ``supported`` where
a proof is given, and else ``inconclusive`` after so many cases.
"""

import re
from collections.abc import Sequence

from natattn.analysis.theorems import PROVED
from natattn.analysis.verdicts import AnalysisResult
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.reproduce.judges.reading import Row, count, number, rows_of
from natattn.statistics.paired import Verdict

CLAIMS = ("P1", "P2", "P3", "P4", "P5", "P6", "D3'", "D4'", "D5'")
_LONGEST = 300  # characters of a counterexample in a note
_HEADINGS = ("claim", "statement", "verdict")


def judge_theorems(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """A finding for every reading of every theorem; the checks are of patterns, the same for every model."""
    checks: dict[str, tuple[Row, AnalysisResult]] = {}
    for analysed in analyses:
        for row in rows_of(analysed, "theorems", *_HEADINGS):
            name = str(row["claim"])
            # Searches of several seeds: one counterexample is enough.
            if name.split(" ")[0] in CLAIMS and (name not in checks or _is_refuted(row) > _is_refuted(checks[name][0])):
                checks[name] = row, analysed
    findings = [_finding(study, name, row, analysed) for name, (row, analysed) in checks.items()]
    if not findings:
        return [], []
    rows: list[tuple[Cell, ...]] = [
        (name, finding.what, Badge(finding.verdict), finding.estimate.value, finding.count, finding.note)
        for name, finding in zip(checks, findings, strict=True)
    ]
    caption = (
        "By a search over random and special patterns in float64: refuted where a case breaks the statement, the "
        "smallest being printed; supported where there is a proof; else inconclusive, as no search can prove. Excess: "
        "(left − right) / scale, above 0 where the statement fails."
    )
    headings = ("theorem", "as it was checked", "verdict", "worst excess", "cases", "why, and the counterexample")
    runs = tuple(finding.runs for finding in findings)
    return findings, [StudyTable("theorems", "Theorems by number", caption, headings, tuple(rows), runs)]


def _is_refuted(row: Row) -> bool:
    """A counterexample is what refutes: without one to show the word alone does not."""
    return row["verdict"] == "refuted" and bool(row.get("smallest counterexample"))


def _finding(study: str, name: str, row: Row, analysed: AnalysisResult) -> Finding:
    cases = count(row, "cases")
    refuted = _is_refuted(row)
    said: Verdict = "refuted" if refuted else "supported" if name in PROVED else "inconclusive"
    parts = [str(row["why"])] if row.get("why") else []
    parts.append(
        f"smallest counterexample: {_one_line(str(row['smallest counterexample']))}"
        if refuted
        else f"no counterexample in {cases} cases"
    )
    claim = name.split(" ")[0]
    return Finding(
        claim, study, str(row["statement"]), "any pattern, float64", Estimate(number(row, "worst excess")),
        "relative excess", cases, said, None, "; ".join(parts), analysed.runs,
    )  # fmt: skip


def _one_line(text: str) -> str:
    """Tensors as lists; large ones by their beginning, as the analysis keeps all of them."""
    short = re.sub(r"torch\.tensor\((.*?), dtype=torch\.float64\)", r"\1", text).replace("\n", ", ")
    return short if len(short) <= _LONGEST else f"{short[:_LONGEST]}…"
