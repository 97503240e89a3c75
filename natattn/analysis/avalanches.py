"""Cascades of activity: sizes, durations, branching ratio and the collapse of their shapes (claim K2).

The papers speak of avalanches without saying of what. Ours are those of neuronal recordings (Beggs and Plenz 2003):

- every unit has a signal over time; here a unit is a head of a layer, its signal a row quantity (entropy, heat
  capacity, …) and time the token, or a unit is a head at a token and time the layer;
- a unit is active when its signal is more than ``threshold`` standard deviations from its mean over time;
- the activity at a time is the number of active units, and a cascade is a maximal run of times with any activity, its
  size the activity summed over it and its duration the number of times.

All of it depends on the threshold, so ``threshold_scan`` is the result to look at, not one row of it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
MOST_LAGS = 20
LEAST_PAIRS = 3  # of activity now and later, for a slope
SHAPE_POINTS = 21  # at which mean shapes are compared


@dataclass(frozen=True, eq=False)
class Cascades:
    """Cascades of one or more series of activity; ``shapes`` is the activity over each."""

    sizes: Counts
    durations: Counts
    shapes: tuple[Counts, ...]


@dataclass(frozen=True)
class Branching:
    """Expected successors of one active unit: below 1 activity dies out, at 1 it is critical.

    ``naive`` is the slope of A(t+1) on A(t), too low when part of the units is unseen; ``robust`` comes from the decay
    of all the slopes with the lag and is not (Wilting and Priesemann 2018). ``slopes`` are those of the lags 1, 2, ….
    """

    naive: float
    robust: float
    slopes: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Collapse:
    """Mean shapes on [0, 1] that fall on one curve when divided by duration^(exponent − 1).

    ``exponent`` is γ of mean size ∝ duration^γ; ``durations`` and ``profiles`` [durations, points] are what was
    averaged, and ``error`` the variance between rescaled profiles over that of their mean: 0 for a perfect collapse.
    """

    exponent: float
    durations: Counts
    profiles: Floats
    error: float


def activity(signals: ArrayLike, threshold: float) -> Counts:
    """Number of active units at each time, [time].

    Args:
        signals: [units, time]; a unit whose signal never changes is never active, and nan is no activity.
        threshold: in standard deviations of the unit's own signal.

    Raises: ValueError for another number of axes or a threshold that is not positive.
    """
    values = np.asarray(signals, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"signals: {values.ndim} axes; valid: [units, time]")
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: must be positive")
    known = np.isfinite(values)
    counts = np.maximum(known.sum(1, keepdims=True), 1)
    centred = np.where(known, values, 0.0)
    centred = np.where(known, centred - centred.sum(1, keepdims=True) / counts, 0.0)
    spread = np.sqrt((centred**2).sum(1, keepdims=True) / counts)
    # Rounding leaves a constant signal a spread of some 1e-16 of its size.
    largest = np.abs(np.where(known, values, 0.0)).max(1, keepdims=True, initial=0.0)
    return np.asarray(((np.abs(centred) > threshold * spread) & (spread > 1e-12 * largest)).sum(0), dtype=np.int64)


def cascades(series: Iterable[ArrayLike]) -> Cascades:
    """Cascades in series of activity, one for each sequence; those cut by an end of their series are left out.

    A cut cascade has an unknown size: counting it would bend the distribution at large sizes.
    """
    shapes = []
    for values in series:
        counts = np.asarray(values, dtype=np.int64)
        quiet = np.flatnonzero(counts == 0)
        shapes += [counts[start + 1 : stop] for start, stop in pairwise(quiet) if stop > start + 1]
    return Cascades(
        np.array([shape.sum() for shape in shapes], dtype=np.int64),
        np.array([len(shape) for shape in shapes], dtype=np.int64),
        tuple(shapes),
    )


def branching_ratio(series: Sequence[ArrayLike]) -> Branching | None:
    """Branching ratio of A(t+1) ~ ratio · A(t) + drive, from the slopes r_k of A(t+k) on A(t), pooled over the series.

    Under subsampling every slope shrinks by the same unknown factor b: r_k = b · ratio^k. The fit of b and ratio is by
    least squares in log r_k, weighted by r_k², over the lags before the first slope that is lost in its noise.

    Returns: None where the activity does not vary, or is too short for a lag.
    """
    known = [np.asarray(values, dtype=np.float64) for values in series]
    if sum(max(0, len(values) - 1) for values in known) < LEAST_PAIRS:
        return None
    level = sum(values.sum() for values in known) / sum(len(values) for values in known)
    centred = [values - level for values in known]
    if not any(values.any() for values in centred):
        return None
    slopes = []
    for lag in range(1, MOST_LAGS + 1):
        pairs = [(values[:-lag], values[lag:]) for values in centred if len(values) > lag]
        variance = sum(float(now @ now) for now, _ in pairs)
        count = sum(len(now) for now, _ in pairs)
        if variance <= 0 or count < LEAST_PAIRS:
            break
        slope = sum(float(now @ later) for now, later in pairs) / variance
        if slope < 2 / math.sqrt(count):  # the error of a slope between series without memory is 1/√count
            break
        slopes.append(slope)
    if not slopes:
        return Branching(0.0, 0.0, ())
    naive = slopes[0]
    if len(slopes) < 2:
        return Branching(naive, naive, tuple(slopes))
    lag_numbers, logs = np.arange(1, len(slopes) + 1), np.log(slopes)
    slope, _ = np.polyfit(lag_numbers, logs, 1, w=np.array(slopes))
    return Branching(naive, float(np.exp(slope)), tuple(slopes))


def shape_collapse(found: Cascades, *, least_count: int = 10, shortest: int = 3) -> Collapse | None:
    """Mean shapes of the durations that occur often enough, and the exponent that makes them fall on one curve.

    γ is the least-squares slope of log mean size on log duration, weighted by the number of cascades, over durations of
    ``shortest`` and more. Short ones are the most frequent and the furthest from any scaling: critical branching has
    γ = 2, and from a duration of 3 on the slope is 1.6.

    Returns: None with fewer than two such durations.
    """
    durations, counts = np.unique(found.durations, return_counts=True)
    chosen = durations[(counts >= least_count) & (durations >= shortest)]
    if len(chosen) < 2:
        return None
    weights = counts[np.isin(durations, chosen)]
    sizes = np.array([found.sizes[found.durations == duration].mean() for duration in chosen])
    exponent = float(np.polyfit(np.log(chosen), np.log(sizes), 1, w=np.sqrt(weights))[0])
    grid = np.linspace(0, 1, SHAPE_POINTS)
    profiles = np.stack([_mean_shape(found, int(duration), grid) for duration in chosen])
    rescaled = profiles / chosen[:, None] ** (exponent - 1)
    mean = rescaled.mean(0)
    error = float(((rescaled - mean) ** 2).mean() / max((mean**2).mean(), 1e-300))
    return Collapse(exponent, chosen.astype(np.int64), profiles, error)


def threshold_scan(
    sequences: Sequence[ArrayLike], thresholds: Sequence[float]
) -> dict[float, tuple[Cascades, Branching | None]]:
    """Cascades and branching ratio at every threshold.

    Args:
        sequences: signals [units, time] of each sequence; means and deviations are the sequence's own.
    """
    result = {}
    for threshold in thresholds:
        series = [activity(signals, threshold) for signals in sequences]
        result[float(threshold)] = cascades(series), branching_ratio(series)
    return result


def _mean_shape(found: Cascades, duration: int, grid: Floats) -> Floats:
    shapes = np.array([shape for shape in found.shapes if len(shape) == duration], dtype=np.float64)
    # A duration of n is n bins: their middles lie half a bin inside.
    middles = (np.arange(duration) + 0.5) / duration
    return np.asarray(np.interp(grid, middles, shapes.mean(0)))
