"""Losses and gradient norms over the steps of training, with bands over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natattn.analysis.bands import Band, band, difference_band, metrics_of
from natattn.analysis.convergence import Convergence, convergence
from natattn.analysis.frame import Question
from natattn.analysis.run_set import RunSet, Treatment
from natattn.analysis.settings import AnalyzeSettings
from natattn.report import figures
from natattn.report.figures import Line
from natattn.report.section import Advance, Cell, Picture, Section, Table, shown, table
from natattn.statistics.paired import mean, t_interval

MOST_DRAWN = 8
_METRICS = (
    ("validation loss, nats/{unit}", "validation/loss"),
    ("training loss, nats/{unit}", "train/loss"),
    ("gradient norm", "train/gradient_norm"),
)


@dataclass(frozen=True)
class Curve:
    """Mean over seeds at each step, with its 95 % t interval: nan below three seeds."""

    label: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Curves of one quantity, and levels to compare them with, {name: value}."""

    quantity: str
    curves: tuple[Curve, ...]
    levels: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """Convergence of the runs of one treatment.

    Attributes:
        runs: number of them.
        final_losses: of those that did not diverge.
        convergence: of those with at least two validation losses.
    """

    label: str
    runs: int
    final_losses: tuple[float, ...]
    convergence: tuple[Convergence, ...]


@dataclass(frozen=True)
class Curves:
    """The result for a set of runs; losses are in nats per ``unit``."""

    unit: str
    treatments: tuple[Trained, ...]
    panels: tuple[Panel, ...]


def measure(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Curves:
    """Average losses, gradient norms and paired differences over seeds."""
    drawn = best_treatments(runs.treatments)
    named = [(title.format(unit=runs.unit), name) for title, name in _METRICS]
    panels = panels_of(drawn, named)
    if panels and panels[0].quantity == named[0][0]:
        panels[0] = Panel(panels[0].quantity, panels[0].curves, _levels(runs))
    baselines = {id(t): baseline for t, baseline in zip(runs.treatments, runs.baselines, strict=True)}
    differences = [difference_band(t, other, "validation/loss") for t in drawn if (other := baselines[id(t)])]
    if curves := _curves(differences):
        panels.append(Panel(f"difference of validation loss, nats/{runs.unit}", curves, {"equal": 0.0}))
    treatments = []
    for t in runs.treatments:
        found = tuple(c for run, arm in t.runs if (c := convergence(metrics_of(run), arm.name)) is not None)
        treatments.append(Trained(t.label, len(t.runs), _finals(t), found))
        advance(1)
    return Curves(runs.unit, tuple(treatments), tuple(panels))


def best_treatments(treatments: Sequence[Treatment]) -> list[Treatment]:
    """Return the treatments with the least final loss, as many as a picture can show, in their order."""
    kept = set(map(id, sorted(treatments, key=lambda t: _mean_final(_finals(t)))[:MOST_DRAWN]))
    return [treatment for treatment in treatments if id(treatment) in kept]


def _finals(treatment: Treatment) -> tuple[float, ...]:
    return tuple(arm.final_loss for _, arm in treatment.runs if arm.final_loss is not None)


def _mean_final(finals: Sequence[float]) -> float:
    return mean(finals) if finals else math.inf


def panels_of(treatments: Sequence[Treatment], metrics: Sequence[tuple[str, str]]) -> list[Panel]:
    """Return a panel for each (title, metric) that was logged."""
    found = [(title, _curves([band(treatment, name) for treatment in treatments])) for title, name in metrics]
    return [Panel(title, curves, {}) for title, curves in found if curves]


def _curves(bands: Sequence[Band | None]) -> tuple[Curve, ...]:
    return tuple(
        Curve(b.label, *(tuple(values.tolist()) for values in (b.steps, b.mean, b.low, b.high)))
        for b in bands
        if b is not None and (b.steps > 0).any()
    )


def _levels(runs: RunSet) -> dict[str, float]:
    """Return losses that need no attention, if all runs have the same data."""
    facts = {run.data.fingerprint: run.data for t in runs.treatments for run, _ in t.runs if run.data}
    if len(facts) != 1:
        return {}
    (data,) = facts.values()
    return dict(data.levels)


def draw(panels: Sequence[Panel]) -> bytes:
    """Draw the curves of every panel with their bands, as PNG."""
    return figures.bands([
        (
            panel.quantity,
            [Line(c.label, np.array(c.steps), *(np.array(v) for v in (c.mean, c.low, c.high))) for c in panel.curves],
            panel.levels,
        )
        for panel in panels
    ])  # fmt: skip


def numbers(panels: Sequence[Panel]) -> Table:
    """Return the numbers that ``draw`` shows."""
    rows = [
        (panel.quantity, curve.label, *values)
        for panel in panels
        for curve in panel.curves
        for values in zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
    ]
    return table(("quantity", "runs", "step", "mean", "low", "high"), rows)


def section(result: Curves) -> Section:
    """Show losses, gradient norms and differences over training, with the levels of the data."""
    headings = ("runs", "seeds", "final loss", "mean loss over steps", "slope at the end, per 100 steps",
                "steps to ¼, ½, ¾ of the fall", "gradient norm", "its largest")  # fmt: skip
    rows = [_row(trained) for trained in result.treatments]
    few = f" The {MOST_DRAWN} of {len(rows)} with least loss." if len(rows) > MOST_DRAWN else ""
    caption = "Means over seeds with 95 % t bands; the difference is paired by seed, data and initial weights." + few
    pictures: tuple[Picture, ...] = ()
    if result.panels:
        pictures = (Picture("curves", caption, numbers(result.panels), draw(result.panels)),)
    least = min(result.treatments, key=lambda trained: _mean_final(trained.final_losses))
    finding = "No run has a final loss."
    if least.final_losses:
        final = shown(_mean_final(least.final_losses), 4)
        finding = f"The least mean final loss is {final} nats/{result.unit}, of {least.label}."
    return Section("curves", "Loss", (finding,), (table(headings, rows),), (), pictures)


def _row(trained: Trained) -> list[Cell]:
    found = trained.convergence
    quarters = zip(*(c.steps_to_quarters for c in found), strict=True)
    steps = [mean([float(step) for step in of_seeds if step is not None]) for of_seeds in quarters]
    return [
        trained.label, trained.runs, _with_half(trained.final_losses), _with_half([c.area for c in found]),
        _with_half([c.slope[0] for c in found]), ", ".join(shown(step) for step in steps),
        mean([c.gradient_norm for c in found]), max((c.largest_gradient_norm for c in found), default=math.nan),
    ]  # fmt: skip


def _with_half(values: Sequence[float]) -> str:
    centre, half = t_interval(values)
    return shown(centre, 4) + ("" if math.isnan(half) else f" ± {shown(half, 2)}")


CURVES = Question(Curves, measure, section, reads_models=False)
