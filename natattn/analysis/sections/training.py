"""Sections on what happened in training: losses over the steps, and attention, with bands over seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from natattn.analysis.bands import Band, band, difference_band, layers_of, metrics_of, series
from natattn.analysis.convergence import Lead, convergence, lead_of_peak, mean_lead
from natattn.analysis.pictures import run_figures
from natattn.analysis.pictures.run_figures import Line
from natattn.analysis.run_set import RunSet, Treatment
from natattn.analysis.settings import AnalyzeSettings
from natattn.errors import UserError
from natattn.report.section import Advance, Cell, Picture, Section, Table, interval_text, shown, table
from natattn.statistics.paired import LEAST_FOR_A_CLAIM, mean, t_interval

Panel = tuple[str, Sequence[Line], Mapping[str, float]]
MOST_DRAWN = 8
TRAINING_CURVES = (
    ("validation loss, nats/{unit}", "validation/loss"),
    ("training loss, nats/{unit}", "train/loss"),
    ("gradient norm", "train/gradient_norm"),
)
ATTENTION_CURVES = (
    ("entropy, nats", "attention/layer_*/entropy"),
    ("heat capacity C", "attention/layer_*/heat_capacity"),
    ("mean |E|", "attention/layer_*/mean_absolute_energy"),
    ("pattern divergence, nats", "attention/layer_*/pattern_divergence"),
)


def curves_section(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Losses, gradient norms and differences over training, with bands over seeds and the levels of the data."""
    drawn = _best(runs.treatments)
    curves = [(title.format(unit=runs.unit), name) for title, name in TRAINING_CURVES]
    panels = _panels(drawn, curves)
    if panels and panels[0][0] == curves[0][0]:
        panels[0] = (*panels[0][:2], _levels(runs))
    compared = {id(t): baseline for t, baseline in zip(runs.treatments, runs.baselines, strict=True)}
    differences = [
        difference_band(t, other, "validation/loss") for t in drawn if (other := compared[id(t)]) is not None
    ]
    if lines := _lines(differences):
        panels.append((f"difference of validation loss, nats/{runs.unit}", lines, {"equal": 0.0}))
    rows: list[list[Cell]] = []
    for treatment in runs.treatments:
        rows.append(_convergence_row(treatment))
        advance(1)
    headings = ("runs", "seeds", "final loss", "mean loss over steps", "slope at the end, per 100 steps",
                "steps to ¼, ½, ¾ of the fall", "gradient norm", "its largest")  # fmt: skip
    few = "" if len(drawn) == len(runs.treatments) else f" The {len(drawn)} of {len(runs.treatments)} with least loss."
    caption = "Means over seeds with 95 % t bands; the difference is paired by seed, data and initial weights." + few
    drawing = run_figures.bands(panels) if panels else None
    pictures = () if drawing is None else (Picture("curves", caption, _as_table(panels), drawing),)
    least = min(runs.treatments, key=_final)
    finding = f"The least mean final loss is {shown(_final(least), 4)} nats/{runs.unit}, of {least.label}."
    findings = (finding if math.isfinite(_final(least)) else "No run has a final loss.",)
    return Section("curves", "Loss", findings, (table(headings, rows),), (), pictures)


def were_observed(runs: RunSet) -> bool:
    """Attention was logged at evaluations; runs that are kept small have lost it."""
    return bool(_observed(runs))


def _observed(runs: RunSet) -> list[Treatment]:
    return [treatment for treatment in runs.treatments if all(layers_of(run) for run, _ in treatment.runs)]


def training_section(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Attention on the probe batch over training; and does the heat capacity peak before the loss falls (K4)?"""
    observed = _observed(runs)
    panels = _panels(_best(observed), ATTENTION_CURVES)
    if not panels:
        raise UserError("sections=[training]: the runs have no attention in their metrics")
    rows: list[list[Cell]] = []
    of_runs: list[list[Cell]] = []
    findings = []
    for treatment in observed:
        leads = _leads(treatment)
        for where, of_seeds in leads.items():
            rows.append(_lead_row(treatment, where, of_seeds))
            of_runs += _run_rows(treatment, where, of_seeds)
        if "mean of layers" in leads:
            findings.append(_of_lead(treatment, leads["mean of layers"]))
        advance(1)
    headings = ("runs", "layer", "seeds", "with a peak inside", "peak at step", "fastest fall at step",
                "lead, log steps", "95 % interval", "low", "high")  # fmt: skip
    picture = Picture(
        "training",
        "Means over layers, heads and the rows of a fixed probe batch; bands over seeds. Pattern divergence is from "
        "one evaluation to the next: what is low is stable.",
        _as_table(panels), run_figures.bands(panels),
    )  # fmt: skip
    findings.append(
        "Lead: log(step of the fastest fall of the loss per log step) − log(step of the heat capacity's peak), our "
        "definition; above zero the peak comes first. Steps are known to the spacing of evaluations only."
    )
    tables = (table(headings, rows), table(_RUN_HEADINGS, of_runs))
    return Section("training", "Attention in training", tuple(findings), tables, (), (picture,))


def _convergence_row(treatment: Treatment) -> list[Cell]:
    found = [c for run, arm in treatment.runs if (c := convergence(metrics_of(run), arm.name)) is not None]
    finals = [arm.final_loss for _, arm in treatment.runs if arm.final_loss is not None]
    quarters = zip(*(c.steps_to_quarters for c in found), strict=True)
    steps = [mean([float(step) for step in of_seeds if step is not None]) for of_seeds in quarters]
    return [
        treatment.label, len(treatment.runs), _with_half(finals), _with_half([c.area for c in found]),
        _with_half([c.slope[0] for c in found]), ", ".join(shown(step) for step in steps),
        mean([c.gradient_norm for c in found]), max((c.largest_gradient_norm for c in found), default=math.nan),
    ]  # fmt: skip


def _with_half(values: Sequence[float]) -> str:
    centre, half = t_interval(values)
    return shown(centre, 4) + ("" if math.isnan(half) else f" ± {shown(half, 2)}")


def _final(treatment: Treatment) -> float:
    finals = [arm.final_loss for _, arm in treatment.runs if arm.final_loss is not None]
    return mean(finals) if finals else math.inf


def _best(treatments: Sequence[Treatment]) -> list[Treatment]:
    """As many as a picture can tell apart, in their order."""
    kept = set(map(id, sorted(treatments, key=_final)[:MOST_DRAWN]))
    return [treatment for treatment in treatments if id(treatment) in kept]


def _lines(found: Sequence[Band | None]) -> list[Line]:
    return [Line(b.label, b.steps, b.mean, b.low, b.high) for b in found if b is not None and (b.steps > 0).any()]


def _panels(treatments: Sequence[Treatment], curves: Sequence[tuple[str, str]]) -> list[Panel]:
    """A panel for each metric that was logged."""
    found = [(label, _lines([band(treatment, name) for treatment in treatments])) for label, name in curves]
    return [(label, lines, {}) for label, lines in found if lines]


def _levels(runs: RunSet) -> dict[str, float]:
    """Losses that need no attention, where all runs have the same data."""
    facts = {run.data.fingerprint: run.data for t in runs.treatments for run, _ in t.runs if run.data}
    if len(facts) != 1:
        return {}
    (data,) = facts.values()
    return data.levels


def _as_table(panels: Sequence[tuple[str, Sequence[Line], object]]) -> Table:
    rows = [
        (label, line.label, int(x), float(y), float(low), float(high))
        for label, lines, _ in panels
        for line in lines
        for x, y, low, high in zip(line.x, line.y, line.low, line.high, strict=True)
    ]
    return table(("quantity", "runs", "step", "mean", "low", "high"), rows)


def _leads(treatment: Treatment) -> dict[str, list[Lead | None]]:
    """By layer, and of the mean over layers: the lead of the heat capacity's peak in every run."""
    layers = sorted({layer for run, _ in treatment.runs for layer in layers_of(run)})
    names = {str(layer): f"attention/layer_{layer}/heat_capacity" for layer in layers}
    if layers:
        names["mean of layers"] = "attention/layer_*/heat_capacity"
    found: dict[str, list[Lead | None]] = {where: [] for where in names}
    for run, arm in treatment.runs:
        steps, losses = series(run, arm, "validation/loss")
        for where, name in names.items():
            own, values = series(run, arm, name)
            common, mine, theirs = np.intersect1d(own, steps, return_indices=True)
            found[where].append(lead_of_peak(common, values[mine], losses[theirs]))
    return found


def _lead_row(treatment: Treatment, where: str, leads: Sequence[Lead | None]) -> list[Cell]:
    inside = [lead for lead in leads if lead is not None and lead.is_inside]
    centre, half, _ = mean_lead(leads)
    return [
        treatment.label, where, len(leads), len(inside), mean([lead.peak_step for lead in inside]),
        mean([lead.fall_step for lead in leads if lead is not None]), centre,
        interval_text(centre - half, centre + half), centre - half, centre + half,
    ]  # fmt: skip


_RUN_HEADINGS = ("runs", "layer", "seed", "a peak inside", "own peak at step", "own fastest fall at step",
                 "own lead, log steps", "evaluations apart, log steps")  # fmt: skip


def _run_rows(treatment: Treatment, where: str, leads: Sequence[Lead | None]) -> Iterator[list[Cell]]:
    """Under ``_RUN_HEADINGS``: what the means are over; a run without a peak inside it has no lead."""
    for (run, _), lead in zip(treatment.runs, leads, strict=True):
        start: list[Cell] = [treatment.label, where, run.seed]
        if lead is None:
            yield [*start, "no", None, None, None, None]
        else:
            own = lead.lead if lead.is_inside else None
            yield [*start, "yes" if lead.is_inside else "no", lead.peak_step, lead.fall_step, own, lead.spacing]


def _of_lead(treatment: Treatment, leads: Sequence[Lead | None]) -> str:
    centre, half, count = mean_lead(leads)
    if count < LEAST_FOR_A_CLAIM:
        return f"{treatment.label}: the heat capacity peaks inside the run with {count} of {len(leads)} seeds."
    spacing = mean([lead.spacing for lead in leads if lead is not None and lead.is_inside])
    said = "neither is surely first"
    if abs(centre) > max(half, spacing):
        said = "first the peak, then the fall" if centre > 0 else "first the fall, then the peak"
    return (
        f"{treatment.label}: the heat capacity (mean of layers) leads the loss's fastest fall by {shown(centre)} "
        f"{interval_text(centre - half, centre + half)} log steps, {count} of {len(leads)} seeds with a peak, "
        f"evaluations {shown(spacing, 2)} apart there: {said}."
    )
