"""Claim K1, T_c(k) = T_0 (d/768)^(−α_k), over models of several widths, and whether peaks grow (section ``widths``).

α is of least squares of log T_c on log d over models, by the peak of the heat capacity and of the susceptibility, in
two scans that are never mixed: scores frozen, and T in every layer. The claim needs α > 0. Whether peaks grow and
sharpen with the width, as those of a transition would and those of a crossover would not, is shown beside it and says
nothing of α. Also the tables of correlation length and susceptibility over temperature, training and context.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from natattn.reproduce.judges.fits import Fit, adjusted
from natattn.reproduce.judges.reading import bounds, count, is_rounded, known, number, row_of, rows_of, value_of
from natattn.reproduce.judges.samples import Group, groups, mean_cell, one_sided
from natattn.reproduce.results import AnalysisResult, Badge, Cell, Estimate, Finding, StudyTable
from natattn.statistics.paired import LEAST_FOR_A_CLAIM, Difference

INDIFFERENCE = 0.02  # of α: T_c changes by 4 % from width 128 to 1,024
FIT_LEVEL = 0.05
WHOLE = "all heads"
SCANS = {"frozen": "scores frozen", "propagated": "T in every layer"}
CURVES = (
    "order parameter m", "correlation length ξ, tokens", "susceptibility χ", "heat capacity C", "entropy S, nats",
)  # fmt: skip
_EXPONENTS = ("scan", "T_c by", "k", "α")


@dataclass(frozen=True)
class _Exponent:
    analysed: AnalysisResult
    row: Mapping[str, Any]

    @property
    def fit(self) -> Fit:
        """α with the fit's own interval; models less the line's two numbers are its degrees of freedom."""
        models = count(self.row, "models")
        return Fit(number(self.row, "α"), *bounds(self.row), models - 2, models)

    @property
    def lack_of_fit(self) -> float:
        """p that the line misses by no more than seeds differ; nan where it is not known."""
        return number(self.row, "lack of fit, p")

    @property
    def is_a_power(self) -> bool:
        """Nothing says that it is none."""
        return math.isnan(self.lack_of_fit) or self.lack_of_fit >= FIT_LEVEL

    @property
    def has_seeds(self) -> bool:
        """Enough repetitions of every width for ``supported``; a family that goes the other way is a counterexample."""
        return self.analysed.seeds is None or self.analysed.seeds >= LEAST_FOR_A_CLAIM


def judge_widths(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """α of all heads together, for both scans and both peaks, Holm-adjusted over all families of models."""
    with_section = [analysed for analysed in analyses if "widths" in analysed.sections]
    found = [_Exponent(a, row) for a in with_section for row in rows_of(a, "widths", *_EXPONENTS)]
    whole = [exponent for exponent in found if exponent.row["k"] == WHOLE]
    rule = one_sided("above", INDIFFERENCE)
    differences = adjusted([exponent.fit for exponent in whole])
    findings = [
        Finding(
            "K1", study, f"α of T_c by {e.row['T_c by']}, {e.row['scan']}", e.analysed.where,
            Estimate(d.mean, *d.interval), "", d.count, rule(d, e.is_a_power and e.has_seeds),
            known(d.p_value), _note(e), e.analysed.runs,
        )
        for e, d in zip(whole, differences, strict=True)
    ]  # fmt: skip
    silent = [a for a in with_section if not any(exponent.analysed is a for exponent in whole)]
    findings += [_not_measured(study, analysed) for analysed in silent]
    tables = [_exponent_table(whole, findings)] if whole else []
    if places := [exponent for exponent in found if exponent.row["k"] != WHOLE]:
        tables.append(_place_table(places, adjusted([exponent.fit for exponent in places])))
    if sizes := list(_size_rows(with_section)):
        tables.append(_size_table(sizes))
    return findings, tables


def _not_measured(study: str, analysed: AnalysisResult) -> Finding:
    note = "not measured: no scan has peaks at three widths"
    return Finding(
        "K1", study, "α of T_c", analysed.where, Estimate(math.nan), "", 0, "inconclusive", None, note, analysed.runs
    )


def _note(found: _Exponent) -> str:
    parts = [f"interval of the fit over {found.fit.count} models, Holm-adjusted over the table"]
    if not found.has_seeds:
        parts.append(f"{found.analysed.seeds} seeds of each: it can be refuted, not supported")
    if is_rounded(found.row):
        parts.append("from the digits that the page shows")
    if not math.isnan(found.lack_of_fit):
        said, then = ("not refuted", "") if found.is_a_power else ("refuted", ", which bars support")
        against = f"against the spread over seeds (p = {found.lack_of_fit:.2g})"
        parts.append(f"a power of the width is {said} {against}{then}")
    without = number(found.row, "heads without a peak")
    if without > 0:
        parts.append(f"{without:.0%} of heads have no peak and are left out")
    size = row_of(found.analysed, "widths", "scan", found.row["scan"], **{"peak of": found.row["T_c by"]})
    if size:
        parts.append(f"peaks over widths: {size.get('verdict', 'undecided')}")
    return "; ".join(parts)


def _exponent_table(whole: Sequence[_Exponent], findings: Sequence[Finding]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = []
    for exponent, finding in zip(whole, findings, strict=False):
        row = exponent.row
        origin = next((number(row, name) for name in row if name.startswith("T_0")), math.nan)
        rows.append((
            exponent.analysed.where, row["scan"], row["T_c by"], finding.estimate, finding.p_value,
            Badge(finding.verdict), origin, finding.count, exponent.lack_of_fit,
        ))  # fmt: skip
    caption = (
        "T_c = T_0 (d/768)^(−α), least squares of the logarithms over models, geometric mean over heads. Intervals are "
        "those of the fits, Holm-adjusted over the rows; the claim is α > 0. T_0 is at width 768, an extrapolation "
        "from narrower models. Lack of fit: p of the F test that the misses of the line are no larger than the spread "
        "over seeds; below 0.05 it is no power of the width, which bars the verdict supported."
    )
    headings = ("models", "scan", "T_c by the peak of", "α", "p", "verdict", "T_0", "count", "lack of fit, p")
    runs = tuple(exponent.analysed.runs for exponent in whole)
    return StudyTable("widths", "Critical temperature over the width", caption, headings, tuple(rows), runs)


def _place_table(places: Sequence[_Exponent], differences: Sequence[Difference]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (
            e.analysed.where, e.row["scan"], e.row["T_c by"], str(e.row["k"]), Estimate(d.mean, *d.interval), d.count,
            e.lack_of_fit,
        )
        for e, d in zip(places, differences, strict=True)
    ]  # fmt: skip
    headings = ("models", "scan", "T_c by the peak of", "k", "α_k", "count", "lack of fit, p")
    caption = (
        "What k is the paper leaves open. Here: a layer, or a rank (the heads of a layer in the order of their T_c). "
        "Intervals are Holm-adjusted over the rows; no verdict was declared for single k."
    )
    runs = tuple(exponent.analysed.runs for exponent in places)
    return StudyTable("widths_by_place", "α by layer and rank", caption, headings, tuple(rows), runs)


def _size_rows(analyses: Sequence[AnalysisResult]) -> Iterator[tuple[AnalysisResult, tuple[Cell, ...]]]:
    for analysed in analyses:
        for row in rows_of(analysed, "widths", "scan", "peak of", "verdict"):
            height = Estimate(
                value_of(row, "power of the height", text="height ∝ d^"),
                *bounds(row, "its low", "its high", text="height ∝ d^"),
            )
            width = Estimate(
                value_of(row, "power of the width", text="width in log T ∝ d^"),
                *bounds(row, text="width in log T ∝ d^"),
            )
            yield analysed, (analysed.where, row["scan"], row["peak of"], height, width, row["verdict"])


def _size_table(found: Sequence[tuple[AnalysisResult, tuple[Cell, ...]]]) -> StudyTable:
    headings = ("models", "scan", "peak of", "height ∝ d^", "width in log T ∝ d^", "peaks")
    caption = (
        "Finite size: a transition's peaks grow and sharpen with the system, a crossover's round off. 95 % t intervals "
        "over widths, not adjusted. Growth alone is no transition: more keys or a larger spread of scores do it too."
    )
    rows, runs = tuple(row for _, row in found), tuple(analysed.runs for analysed, _ in found)
    return StudyTable("peaks_by_width", "Peaks over the width", caption, headings, rows, runs)


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
