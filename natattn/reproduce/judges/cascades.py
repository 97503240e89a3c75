"""Claim K2, P(s) ∝ s^(−τ) exp(−s/s_c) with τ ≈ 3/2, over cascades of entropy (section ``cascades``).

τ is that of the law with a cutoff, by maximum likelihood on the tail of the fit, as the claim has it; of analyses kept
before it was there, that of the plain power law. τ is about 3/2, by our definition, within ``TOLERANCE`` of it. It has
to hold over thresholds, so that each is a row. The bootstrap p-value is of the plain power law, the log-likelihood
ratios are the plain power law's minus a rival's, and the branching ratio would be 1 at criticality.
"""

import math
from collections.abc import Iterator, Sequence

from natattn.analysis.verdicts import AnalysisResult, Group, Measured, Row, findings_of, groups, near
from natattn.report.table import Badge, Cell, Finding, StudyTable
from natattn.reproduce.judges import reading
from natattn.reproduce.judges.reading import bounds, is_rounded, mean_cell, number, row_of, rows_of

CLAIMED = 1.5
TOLERANCE = 0.1
_SECTION = "cascades"
_WITH_CUTOFF = "τ with a cutoff"
_SHOWN = (
    "cascades", "branching, robust", "τ", _WITH_CUTOFF, "p", "cutoff", "log ratio to a cutoff", "p of a cutoff",
    "log ratio to lognormal", "log ratio to exponential",
)  # fmt: skip


def judge_cascades(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """τ at every threshold of every kind of models."""
    found = [(group, threshold) for group in groups(analyses, _SECTION) for threshold in _thresholds(group)]
    rows = [_row(group, threshold) for group, threshold in found]
    # A section that has no threshold at all says so by a row of its own.
    silent = [
        Row("K2", "exponent τ of cascades", group, (Measured(math.nan, missing="no thresholds"),) * len(group.members))
        for group in groups(analyses, _SECTION)
        if not _thresholds(group)
    ]  # fmt: skip
    findings = findings_of(study, [*rows, *silent], near(TOLERANCE))
    if not found:
        return findings, []
    table_rows: list[tuple[Cell, ...]] = [
        (group.label, threshold, finding.estimate, Badge(finding.verdict), finding.count, *_cells(group, threshold))
        for (group, threshold), finding in zip(found, findings, strict=False)
    ]
    caption = (
        "Cascades: tokens in a row whose entropy is further from their head's mean than the threshold, in its standard "
        f"deviations. Claimed: τ within {TOLERANCE:g} of 3/2 (our definition of ≈) at every threshold. The first τ is "
        "judged, Holm-adjusted over rows where it is over seeds; the columns after the count are means over seeds "
        "with 95 % t intervals, not adjusted. p: bootstrap, of the plain power law, below 0.1 it is refuted. Log "
        "ratios: of likelihoods, plain power law minus rival, below 0 the rival is nearer."
    )
    headings = ("models", "threshold", "τ", "verdict", "count", *(_heading(name) for name in _SHOWN))
    runs = tuple(group.runs for group, _ in found)
    return findings, [StudyTable("cascades", "Cascades by threshold", caption, headings, tuple(table_rows), runs)]


def _heading(name: str) -> str:
    return {"τ": "τ of the plain power law", "cutoff": "s_c", "branching, robust": "branching ratio"}.get(name, name)


def _thresholds(group: Group) -> list[float]:
    found = {number(row, "threshold") for m in group.members for row in rows_of(m, _SECTION, "threshold", "τ")}
    return sorted(value for value in found if math.isfinite(value))


def _row(group: Group, threshold: float) -> Row:
    own = [row_of(member, _SECTION, "threshold", threshold) for member in group.members]
    measured = tuple(_measured(row) for row in own)
    notes = []
    if any(row and _WITH_CUTOFF not in row for row in own):
        notes.append("τ of the plain power law: this analysis has none with a cutoff")
    if group.is_one_model and is_rounded(own[0]):
        notes.append("interval from the digits that the page shows")
    p_values = [p for row in own if math.isfinite(p := number(row, "p"))]
    if p_values:
        below = sum(p < 0.1 for p in p_values)
        notes.append(f"a plain power law is refuted (p < 0.1) in {below} of {len(p_values)} models")
    if rivals := sorted({name for row in own for name in _rivals(row)}):
        notes.append(f"nearer than it: {', '.join(rivals)}")
    what = f"exponent τ of cascades beyond {threshold:g} standard deviations (claimed: 3/2)"
    return Row("K2", what, group, measured, against=CLAIMED, note="; ".join(notes))


def _measured(row: reading.Row) -> Measured:
    """Of one model at one threshold."""
    name = _WITH_CUTOFF if _WITH_CUTOFF in row else "τ"
    value = number(row, name)
    if not math.isfinite(value):
        return Measured(math.nan, missing="too few cascades for a fit")
    ends = ("low with a cutoff", "high with a cutoff") if name == _WITH_CUTOFF else ("low", "high")
    return Measured(value, *bounds(row, *ends), over="resampled cascades")


def _rivals(row: reading.Row) -> Iterator[str]:
    said = str(row.get("better rival") or "none")
    if said != "none":
        yield from (name.strip().replace("_", " ") for name in said.split(","))


def _cells(group: Group, threshold: float) -> Iterator[Cell]:
    own = [row_of(member, _SECTION, "threshold", threshold) for member in group.members]
    for name in _SHOWN:
        found = mean_cell(group, own, name)
        yield None if math.isnan(found.value) else found
