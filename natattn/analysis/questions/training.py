"""Attention over training, and claims K4 and R4: does the heat capacity peak before the loss falls?

Lead: log(step of the fastest fall of the loss per log step) − log(step of the heat capacity's peak), by our definition;
above zero the peak comes first. The mean over layers is judged, as declared. Single layers were not singled out
beforehand and are shown adjusted for all of them. Both claims say that training has a critical point which attention
shows first: one measurement bears on both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from natattn.analysis.bands import layers_of, series
from natattn.analysis.frame import Question
from natattn.analysis.questions.curves import Panel, best_treatments, draw, numbers, panels_of
from natattn.analysis.run_set import RunSet, Treatment
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.verdicts import AnalysisResult, Fit, adjusted, by_seed, known, mean_of, one_sided
from natattn.errors import UserError
from natattn.report.section import Advance, Cell, Picture, Section, interval_text, shown, table
from natattn.report.table import Badge, Estimate, Finding, StudyTable
from natattn.report.table import Cell as StudyCell
from natattn.statistics.paired import LEAST_FOR_A_CLAIM, LEAST_FOR_SIGN_FLIPS, mean, sign_flip_p_value, t_interval

CLAIMS = ("K4", "R4")
INDIFFERENCE = 0.05  # of log steps: 5 % earlier or later
DECLARED = "mean of layers"
_METRICS = (
    ("entropy, nats", "attention/layer_*/entropy"),
    ("heat capacity C", "attention/layer_*/heat_capacity"),
    ("mean |E|", "attention/layer_*/mean_absolute_energy"),
    ("pattern divergence, nats", "attention/layer_*/pattern_divergence"),
)


@dataclass(frozen=True)
class Lead:
    """Steps at which a quantity peaked in training and at which the loss fell fastest.

    Both are on the grid of evaluations, so a lead below its ``spacing`` there (of the logarithm) shows nothing.
    ``is_inside`` is false if the maximum is at the first or last evaluation, which is not a peak.
    """

    peak_step: float
    fall_step: float
    is_inside: bool
    spacing: float

    @property
    def lead(self) -> float:
        """log(step of the fastest fall) − log(step of the peak); above 0 the peak came first."""
        return math.log(self.fall_step) - math.log(self.peak_step)


@dataclass(frozen=True)
class PlaceLeads:
    """The leads of one treatment in one layer, or in the mean of layers.

    Attributes:
        seeds: of every run.
        leads: of every run; None with fewer than four evaluations.
    """

    label: str
    layer: str
    seeds: tuple[int | None, ...]
    leads: tuple[Lead | None, ...]

    @property
    def inside(self) -> list[Lead]:
        """The leads of the runs that have a peak."""
        return [lead for lead in self.leads if lead is not None and lead.is_inside]

    @property
    def peak_step(self) -> float:
        """Mean step of the peaks."""
        return mean([lead.peak_step for lead in self.inside])

    @property
    def fall_step(self) -> float:
        """Mean step of the fastest fall."""
        return mean([lead.fall_step for lead in self.leads if lead is not None])

    @property
    def spacing(self) -> float:
        """Mean distance of evaluations, in log steps, of the runs that have a peak."""
        return mean([lead.spacing for lead in self.inside])

    @property
    def sample(self) -> list[float]:
        """The mean lead of every seed that has a peak."""
        pairs = zip(self.seeds, self.leads, strict=True)
        return by_seed([(seed, lead.lead) for seed, lead in pairs if lead is not None and lead.is_inside])


@dataclass(frozen=True)
class Training:
    """The result for runs in which attention was observed."""

    panels: tuple[Panel, ...]
    places: tuple[PlaceLeads, ...]


def were_observed(runs: RunSet) -> bool:
    """Return whether attention was logged at evaluations; the records of published runs leave it out."""
    return bool(_observed(runs))


def _observed(runs: RunSet) -> list[Treatment]:
    return [treatment for treatment in runs.treatments if all(layers_of(run) for run, _ in treatment.runs)]


def measure(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Training:
    """Average attention on the probe batch over seeds, and find the lead of every layer in every run.

    Raises: UserError if the runs have no attention in their metrics.
    """
    observed = _observed(runs)
    panels = panels_of(best_treatments(observed), _METRICS)
    if not panels:
        raise UserError("sections=[training]: the runs have no attention in their metrics")
    places = []
    for treatment in observed:
        layers = sorted({layer for run, _ in treatment.runs for layer in layers_of(run)})
        names = {str(layer): f"attention/layer_{layer}/heat_capacity" for layer in layers}
        names[DECLARED] = "attention/layer_*/heat_capacity"
        for layer, name in names.items():
            leads = []
            for run, arm in treatment.runs:
                steps, losses = series(run, arm, "validation/loss")
                own, values = series(run, arm, name)
                common, mine, theirs = np.intersect1d(own, steps, return_indices=True)
                leads.append(lead_of_peak(common, values[mine], losses[theirs]))
            seeds = tuple(run.seed for run, _ in treatment.runs)
            places.append(PlaceLeads(treatment.label, layer, seeds, tuple(leads)))
        advance(1)
    return Training(tuple(panels), tuple(places))


def lead_of_peak(steps: ArrayLike, quantity: ArrayLike, losses: ArrayLike) -> Lead | None:
    """Return where a quantity peaks and where the loss falls fastest per log step.

    Step 0 is left out, because it has no logarithm. Returns None with fewer than four evaluations after it.
    """
    grid, curve, loss = (np.asarray(values, dtype=np.float64) for values in (steps, quantity, losses))
    kept = (grid > 0) & np.isfinite(curve) & np.isfinite(loss)
    grid, curve, loss = grid[kept], curve[kept], loss[kept]
    if len(grid) < 4:
        return None
    logs = np.log(grid)
    slopes = np.diff(loss) / np.diff(logs)
    steepest = int(slopes.argmin())
    top = int(curve.argmax())
    middle = math.exp((logs[steepest] + logs[steepest + 1]) / 2)
    return Lead(float(grid[top]), middle, 0 < top < len(grid) - 1, float(logs[steepest + 1] - logs[steepest]))


def section(result: Training) -> Section:
    """Show attention on the probe batch over training, and whether the heat capacity peaks before the loss falls."""
    findings = [_sentence(place) for place in result.places if place.layer == DECLARED]
    findings.append(
        "Lead: log(step of the fastest fall of the loss per log step) − log(step of the heat capacity's peak), our "
        "definition; above zero the peak comes first. Steps are known to the spacing of evaluations only."
    )
    mean_rows: list[list[Cell]] = []
    run_rows: list[list[Cell]] = []
    for place in result.places:
        centre, half = t_interval([lead.lead for lead in place.inside])
        low, high = centre - half, centre + half
        mean_rows.append([
            place.label, place.layer, len(place.leads), len(place.inside), place.peak_step, place.fall_step, centre,
            interval_text(low, high), low, high,
        ])  # fmt: skip
        for seed, lead in zip(place.seeds, place.leads, strict=True):
            cells: list[Cell] = ["no", None, None, None, None]
            if lead is not None:
                own = lead.lead if lead.is_inside else None
                cells = ["yes" if lead.is_inside else "no", lead.peak_step, lead.fall_step, own, lead.spacing]
            run_rows.append([place.label, place.layer, seed, *cells])
    tables = (
        table(("runs", "layer", "seeds", "with a peak inside", "peak at step", "fastest fall at step",
               "lead, log steps", "95 % interval", "low", "high"), mean_rows),
        table(("runs", "layer", "seed", "a peak inside", "own peak at step", "own fastest fall at step",
               "own lead, log steps", "evaluations apart, log steps"), run_rows),
    )  # fmt: skip
    caption = (
        "Means over layers, heads and the rows of a fixed probe batch; bands over seeds. Pattern divergence is from "
        "one evaluation to the next: what is low is stable."
    )
    picture = Picture("training", caption, numbers(result.panels), draw(result.panels))
    return Section("training", "Attention in training", tuple(findings), tables, (), (picture,))


def _sentence(place: PlaceLeads) -> str:
    leads = [lead.lead for lead in place.inside]
    if len(leads) < LEAST_FOR_A_CLAIM:
        return f"{place.label}: the heat capacity peaks inside the run with {len(leads)} of {len(place.leads)} seeds."
    centre, half = t_interval(leads)
    outcome = "neither is surely first"
    if abs(centre) > max(half, place.spacing):
        outcome = "first the peak, then the fall" if centre > 0 else "first the fall, then the peak"
    return (
        f"{place.label}: the heat capacity (mean of layers) leads the loss's fastest fall by {shown(centre)} "
        f"{interval_text(centre - half, centre + half)} log steps, {len(leads)} of {len(place.leads)} seeds with a "
        f"peak, evaluations {shown(place.spacing, 2)} apart there: {outcome}."
    )


@dataclass(frozen=True)
class _Judged:
    """The leads of one place in one analysis; ``where`` names the kind of runs if a set has several."""

    analysed: AnalysisResult
    where: str
    place: PlaceLeads

    @property
    def fit(self) -> Fit:
        """The mean lead over seeds."""
        return mean_of(self.place.sample)

    @property
    def seeds(self) -> int:
        """Number of different seeds."""
        return len(set(self.place.seeds))

    @property
    def is_complete(self) -> bool:
        """True if every run has a peak and the mean exceeds the spacing of evaluations."""
        return self.fit.count == self.seeds and not abs(self.fit.value) <= self.place.spacing


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Judge the lead of every kind of runs, Holm-adjusted over kinds; show every layer, adjusted over all of these."""
    found = []
    for analysed in analyses:
        if "training" in analysed.results:
            places = analysed.result("training", Training).places
            several = len({place.label for place in places}) > 1
            found += [
                _Judged(analysed, f"{analysed.where}, {place.label}" if several else analysed.where, place)
                for place in places
            ]
    declared = [each for each in found if each.place.layer == DECLARED]
    differences = adjusted([each.fit for each in declared])
    rule = one_sided("above", INDIFFERENCE)
    findings = [
        Finding(
            claim, study, "lead of the heat capacity's peak before the fastest fall of the loss", each.where,
            Estimate(each.fit.value, *difference.interval), "log steps", each.fit.count,
            rule(difference, each.is_complete), known(difference.p_value), _note(each), each.analysed.runs,
        )
        for claim in CLAIMS
        for each, difference in zip(declared, differences, strict=True)
    ]  # fmt: skip
    tables = []
    if declared:
        rows: list[tuple[StudyCell, ...]] = [
            (
                each.where, each.seeds, each.fit.count, known(each.place.peak_step), known(each.place.fall_step),
                finding.estimate, finding.p_value, Badge(finding.verdict),
            )
            for each, finding in zip(declared, findings[: len(declared)], strict=True)
        ]  # fmt: skip
        caption = (
            "Lead: log(step of the loss's fastest fall per log step) − log(step of the heat capacity's peak), the "
            "latter as the mean over layers; above 0 the peak comes first. Only runs with a peak inside them have one. "
            "Intervals are Holm-adjusted over the rows."
        )
        headings = ("runs", "seeds", "with a peak", "peak at step", "fastest fall at step", "lead, log steps", "p",
                    "verdict")  # fmt: skip
        runs = tuple(each.analysed.runs for each in declared)
        tables.append(StudyTable("lead", "Does the heat capacity peak first?", caption, headings, tuple(rows), runs))
    if len(found) > len(declared):
        tables.append(_layer_table(found))
    return findings, tables


def _note(each: _Judged) -> str:
    fit, sample = each.fit, each.place.sample
    parts = [f"mean over layers; {fit.count} of {each.seeds} seeds have a peak inside the run"]
    if fit.count < LEAST_FOR_A_CLAIM:
        parts.append(f"a claim needs {LEAST_FOR_A_CLAIM}")
    elif fit.count < each.seeds:
        parts.append("runs without a peak bar support")
    if abs(fit.value) <= each.place.spacing:
        parts.append(f"evaluations are {each.place.spacing:.2g} log steps apart, so that less than that is not seen")
    if len(sample) >= LEAST_FOR_SIGN_FLIPS:
        parts.append(f"by permutation of signs p = {sign_flip_p_value(sample):.2g}, not adjusted")
    return "; ".join(parts)


def _layer_table(found: Sequence[_Judged]) -> StudyTable:
    rows: list[tuple[StudyCell, ...]] = [
        (
            each.where, each.place.layer, each.seeds, each.fit.count, Estimate(each.fit.value, *difference.interval),
            known(difference.p_value),
        )
        for each, difference in zip(found, adjusted([each.fit for each in found]), strict=True)
    ]  # fmt: skip
    caption = "As above, by layer. No layer was singled out beforehand: all rows are Holm-adjusted together."
    headings = ("runs", "layer", "seeds", "with a peak", "lead, log steps", "p")
    runs = tuple(each.analysed.runs for each in found)
    return StudyTable("lead_by_layer", "The lead by layer", caption, headings, tuple(rows), runs)


TRAINING = Question(Training, measure, section, were_observed, reads_models=False)
