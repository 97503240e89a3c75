"""Tables of correlation length and susceptibility over temperature, training and context."""

import math
from collections.abc import Sequence

from natattn.analysis.verdicts import AnalysisResult, Group, groups
from natattn.report.table import Cell, Estimate, Finding, StudyTable
from natattn.reproduce.judges.reading import mean_cell, number, row_of, rows_of

SCANS = {"frozen": "scores frozen", "propagated": "T in every layer"}
CURVES = (
    "order parameter m", "correlation length ξ, tokens", "susceptibility χ", "heat capacity C", "entropy S, nats",
)  # fmt: skip


def judge_correlation(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Tables alone: ξ, χ, m and C over temperature, over training at T = 1, and peaks over the context."""
    curves: list[tuple[Cell, ...]] = []
    trained: list[tuple[Cell, ...]] = []
    curve_runs, trained_runs = [], []
    for kind, scan in SCANS.items():
        for group in groups(analyses, kind):
            temperatures = _temperatures(group, kind)
            for temperature in temperatures:
                curves.append((group.label, scan, temperature, *_at(group, kind, temperature)))
                curve_runs.append(group.runs)
            if temperatures and kind == "frozen":  # at T = 1 both scans are the model as it is
                nearest = min(temperatures, key=lambda value: abs(math.log(value)))
                trained.append((group.label, group.steps, nearest, *_at(group, kind, nearest)))
                trained_runs.append(group.runs)
    caption = (
        "Means over rows, heads and layers, then over seeds with 95 % t intervals, not adjusted; ξ by the second "
        "moment of the order parameter's correlation over lags."
    )
    tables = [
        StudyTable(
            "correlation_by_temperature", "Correlation length and susceptibility over temperature", caption,
            ("models", "scan", "T", *CURVES), tuple(curves), tuple(curve_runs),
        ),
        StudyTable(
            "correlation_by_steps", "Correlation length and susceptibility over training", caption,
            ("models", "steps", "T", *CURVES), tuple(trained), tuple(trained_runs),
        ),
        _context_table(analyses),
    ]  # fmt: skip
    return [], [table for table in tables if table.rows]


def _temperatures(group: Group, kind: str) -> list[float]:
    found = {number(row, "temperature") for m in group.members for row in rows_of(m, kind, "temperature", CURVES[1])}
    return sorted(value for value in found if value > 0)


def _at(group: Group, kind: str, temperature: float) -> list[Estimate]:
    rows = [row_of(member, kind, "temperature", temperature) for member in group.members]
    return [mean_cell(group, rows, curve) for curve in CURVES]


def _context_table(analyses: Sequence[AnalysisResult]) -> StudyTable:
    """The heights are divided by what independent scores would gain: C by log L, χ by L."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for group in groups(analyses, "sizes"):
        places = [(row["peak of"], row["tokens"]) for row in rows_of(group.members[0], "sizes", "peak of", "tokens")]
        for peak, tokens in places:
            share = math.log(tokens) if peak == "heat_capacity" else float(tokens)
            own = [row_of(member, "sizes", "peak of", peak, tokens=tokens) for member in group.members]
            found = [mean_cell(group, own, name) for name in ("T", "height", "width in log T")]
            rows.append((group.label, str(peak).replace("_", " "), tokens, *found, found[1].value / share))
            runs.append(group.runs)
    caption = (
        "Scores frozen. Independent scores would give a constant last column (C per nat of log L, χ per key): a height "
        "that grows no faster is no sign of a transition."
    )
    headings = ("models", "peak of", "tokens", "T", "height", "width in log T", "height per log L or L")
    return StudyTable("peaks_by_context", "Peaks over the context", caption, headings, tuple(rows), tuple(runs))
