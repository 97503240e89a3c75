"""Claims K4 and R4: does the heat capacity peak before the loss falls? Over seeds (section ``training``).

Lead: log(step of the fastest fall of the loss per log step) − log(step of the heat capacity's peak), our definition,
above zero where the peak comes first. What is judged is the mean over layers, as declared; single layers were not
singled out beforehand and are shown adjusted for all places that were looked at. Both claims say that training has a
critical point which attention shows first: one measurement bears on both.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from natattn.analysis.verdicts import AnalysisResult, Fit, adjusted, known, mean_of, one_sided
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.reproduce.judges.reading import bounds, count, is_rounded, number, rows_of
from natattn.statistics.paired import LEAST_FOR_A_CLAIM, LEAST_FOR_SIGN_FLIPS, Difference, mean, sign_flip_p_value

CLAIMS = ("K4", "R4")
INDIFFERENCE = 0.05  # of log steps: 5 % earlier or later
DECLARED = "mean of layers"
_SECTION = "training"


@dataclass(frozen=True)
class _Lead:
    """Of one kind of runs at one place. ``sample`` is empty for analyses kept before it was there."""

    analysed: AnalysisResult
    kind: str
    place: str
    fit: Fit
    sample: tuple[float, ...]
    seeds: int
    spacing: float
    rounded: bool
    peak: float
    fall: float

    @property
    def where(self) -> str:
        """The kind too, where a set of runs has several."""
        return self.analysed.where if not self.kind else f"{self.analysed.where}, {self.kind}"

    @property
    def is_complete(self) -> bool:
        """Every run has a peak, and the mean is beyond what the evaluations can tell."""
        return self.fit.count == self.seeds and not abs(self.fit.value) <= self.spacing


def judge_lead(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """The lead of every kind of runs, Holm-adjusted over kinds; and of every layer, over all of these."""
    found = [lead for analysed in analyses if _SECTION in analysed.sections for lead in _leads(analysed)]
    declared = [lead for lead in found if lead.place == DECLARED]
    differences = adjusted([lead.fit for lead in declared])
    rule = one_sided("above", INDIFFERENCE)
    findings = [
        Finding(
            claim, study, "lead of the heat capacity's peak before the fastest fall of the loss", lead.where,
            Estimate(lead.fit.value, *difference.interval), "log steps", lead.fit.count,
            rule(difference, lead.is_complete), known(difference.p_value), _note(lead), lead.analysed.runs,
        )
        for claim in CLAIMS
        for lead, difference in zip(declared, differences, strict=True)
    ]  # fmt: skip
    tables = []
    if declared:
        tables.append(_table(declared, differences, findings[: len(declared)]))
    if any(lead.place != DECLARED for lead in found):
        tables.append(_place_table(found, adjusted([lead.fit for lead in found])))
    return findings, tables


def _leads(analysed: AnalysisResult) -> Iterator[_Lead]:
    rows = rows_of(analysed, _SECTION, "runs", "layer", "lead, log steps")
    of_runs = rows_of(analysed, _SECTION, "runs", "layer", "own lead, log steps")
    kinds = {row["runs"] for row in rows}
    for row in rows:
        mine = [own for own in of_runs if (own["runs"], own["layer"]) == (row["runs"], row["layer"])]
        known = [own for own in mine if math.isfinite(number(own, "own lead, log steps"))]
        sample = _by_seed([(own.get("seed"), number(own, "own lead, log steps")) for own in known])
        inside = count(row, "with a peak inside")
        fit = mean_of(sample) if mine else Fit(number(row, "lead, log steps"), *bounds(row), inside - 1, inside)
        spacings = [number(own, "evaluations apart, log steps") for own in known]
        seeds = len({own.get("seed") for own in mine}) if mine else count(row, "seeds")
        yield _Lead(
            analysed, str(row["runs"]) if len(kinds) > 1 else "", str(row["layer"]), fit, tuple(sample), seeds,
            mean(spacings), is_rounded(row) and not mine, number(row, "peak at step"),
            number(row, "fastest fall at step"),
        )  # fmt: skip


def _by_seed(values: Sequence[tuple[object, float]]) -> list[float]:
    seeds: dict[object, list[float]] = {}
    for seed, value in values:
        seeds.setdefault(seed, []).append(value)
    return [mean(of_seed) for of_seed in seeds.values()]


def _note(lead: _Lead) -> str:
    with_peak = lead.fit.count
    parts = [f"mean over layers; {with_peak} of {lead.seeds} seeds have a peak inside the run"]
    if with_peak < LEAST_FOR_A_CLAIM:
        parts.append(f"a claim needs {LEAST_FOR_A_CLAIM}")
    elif with_peak < lead.seeds:
        parts.append("runs without a peak bar support")
    if abs(lead.fit.value) <= lead.spacing:
        parts.append(f"evaluations are {lead.spacing:.2g} log steps apart, so that less than that is not seen")
    if len(lead.sample) >= LEAST_FOR_SIGN_FLIPS:
        parts.append(f"by permutation of signs p = {sign_flip_p_value(lead.sample):.2g}, not adjusted")
    if lead.rounded:
        parts.append("interval from the digits that the page shows")
    return "; ".join(parts)


def _table(leads: Sequence[_Lead], differences: Sequence[Difference], findings: Sequence[Finding]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (
            lead.where, lead.seeds, lead.fit.count, known(lead.peak), known(lead.fall), finding.estimate,
            finding.p_value, Badge(finding.verdict),
        )
        for lead, finding in zip(leads, findings, strict=True)
    ]  # fmt: skip
    caption = (
        "Lead: log(step of the loss's fastest fall per log step) − log(step of the heat capacity's peak), the latter "
        "as the mean over layers; above 0 the peak comes first. Only runs with a peak inside them have one. Intervals "
        "are Holm-adjusted over the rows."
    )
    headings = ("runs", "seeds", "with a peak", "peak at step", "fastest fall at step", "lead, log steps", "p",
                "verdict")  # fmt: skip
    runs = tuple(lead.analysed.runs for lead in leads)
    return StudyTable("lead", "Does the heat capacity peak first?", caption, headings, tuple(rows), runs)


def _place_table(leads: Sequence[_Lead], differences: Sequence[Difference]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (
            lead.where, lead.place, lead.seeds, lead.fit.count, Estimate(lead.fit.value, *difference.interval),
            known(difference.p_value),
        )
        for lead, difference in zip(leads, differences, strict=True)
    ]  # fmt: skip
    caption = "As above, by layer. No layer was singled out beforehand: all rows are Holm-adjusted together."
    headings = ("runs", "layer", "seeds", "with a peak", "lead, log steps", "p")
    runs = tuple(lead.analysed.runs for lead in leads)
    return StudyTable("lead_by_layer", "The lead by layer", caption, headings, tuple(rows), runs)
