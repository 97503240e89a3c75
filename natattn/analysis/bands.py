"""Training curves over seeds: means with 95 % t bands, and paired differences."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.run_set import Treatment, pairs
from natattn.analysis.runs import ArmSummary, RunSummary, read_run_metrics
from natattn.statistics.paired import t_interval
from natattn.tracking.metrics_file import Metrics

Floats = NDArray[np.float64]
Series = tuple[NDArray[np.int64], Floats]
ANY_LAYER = "attention/layer_*/"
MOST_POINTS = 100
LEAST_SEEDS = 3  # of a band: with two, an interval is 13 standard errors wide and hides the rest


@dataclass(frozen=True, eq=False)
class Band:
    """Mean over seeds at each step, with its 95 % t interval (nan below three seeds)."""

    label: str
    seeds: int
    steps: NDArray[np.int64]
    mean: Floats
    low: Floats
    high: Floats


def series(run: RunSummary, arm: ArmSummary, name: str) -> Series:
    """Return a metric of an arm; for a name that begins with ``ANY_LAYER``, its mean over layers."""
    metrics = metrics_of(run)
    if not name.startswith(ANY_LAYER):
        steps, values, _ = metrics.select(arm=arm.name, name=name)
        return _once(steps, values)
    layers = [series(run, arm, f"attention/layer_{layer}/{name.removeprefix(ANY_LAYER)}") for layer in layers_of(run)]
    steps = _common([found[0] for found in layers])
    of_layers = [found[1][np.isin(found[0], steps)] for found in layers]
    return steps, np.mean(of_layers, axis=0) if of_layers else np.zeros(0)


def layers_of(run: RunSummary) -> list[int]:
    """Return the layers whose attention was observed in training."""
    names = metrics_of(run).names()
    return sorted({int(found[1]) for name in names if (found := re.match(r"attention/layer_(\d+)/", name))})


def band(treatment: Treatment, name: str) -> Band | None:
    """Return a metric over a treatment's seeds, at the steps that all have; None if there are none.

    Metrics of more than a hundred steps are averaged over bins that are equally wide in the logarithm of the step.
    """
    found = [_averaged(*series(run, arm, name)) for run, arm in treatment.runs]
    return _band(treatment.label, [curve for curve in found if len(curve[0])])


def difference_band(treatment: Treatment, baseline: Treatment, name: str) -> Band | None:
    """Return treatment − baseline over paired runs; None if no runs are paired."""
    differences = []
    for mine, theirs in pairs(treatment, baseline):
        first, second = series(*mine, name), series(*theirs, name)
        steps, left, right = np.intersect1d(first[0], second[0], return_indices=True)
        if len(steps):
            differences.append((steps, first[1][left] - second[1][right]))
    return _band(f"{treatment.label} − {baseline.label}", differences)


def _band(label: str, curves: Sequence[Series]) -> Band | None:
    steps = _common([curve[0] for curve in curves])
    if not len(steps):
        return None
    values = np.stack([values[np.isin(own, steps)] for own, values in curves])
    found = np.array([t_interval(list(column)) for column in values.T])
    centre, half = found[:, 0], found[:, 1] if len(curves) >= LEAST_SEEDS else np.full(len(steps), np.nan)
    return Band(label, len(curves), steps, centre, centre - half, centre + half)


def _common(steps: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    if not steps:
        return np.zeros(0, dtype=np.int64)
    common = steps[0]
    for other in steps[1:]:
        common = np.intersect1d(common, other)
    return common


def _averaged(steps: NDArray[np.int64], values: Floats) -> Series:
    """Means over bins of the logarithm of the step, each at the last step of its bin."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    edges = np.geomspace(1, steps[-1], MOST_POINTS)
    last = np.flatnonzero(np.diff(np.searchsorted(edges, steps), append=len(edges)))
    counts = np.diff(last, prepend=-1)
    sums = np.add.reduceat(values, np.concatenate([[0], last[:-1] + 1]))
    return steps[last], sums / counts


def _once(steps: NDArray[np.int64], values: Floats) -> Series:
    """The last value of each step: a resumed run may have logged a step twice."""
    unique, last = np.unique(steps[::-1], return_index=True)
    return unique, values[::-1][last]


def metrics_of(run: RunSummary) -> Metrics:
    """Return the metrics of a run; cached, because callers ask for one series after another."""
    return _metrics(run.folder)


@lru_cache(maxsize=64)
def _metrics(folder: Path) -> Metrics:
    return read_run_metrics(folder)
