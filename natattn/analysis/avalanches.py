"""Cascades of activity: their sizes, and the branching ratio (claim K2).

The papers speak of avalanches without saying of what. Ours are those of neuronal recordings (Beggs and Plenz 2003):

- every unit has a signal over time; here a unit is a head of a layer, its signal a row quantity (entropy, heat
  capacity, …) and time the token, or a unit is a head at a token and time the layer;
- a unit is active when its signal is more than ``threshold`` standard deviations from its mean over time;
- the activity at a time is the number of active units, and a cascade is a maximal run of times with any activity, its
  size the activity summed over it.

All of it depends on the threshold, so ``threshold_scan`` is the result to look at, not one row of it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
MOST_LAGS = 20
LEAST_PAIRS = 3  # of activity now and later, for a slope


@dataclass(frozen=True)
class Branching:
    """Expected successors of one active unit: below 1 activity dies out, at 1 it is critical.

    ``naive`` is the slope of A(t+1) on A(t), too low when part of the units is unseen; ``robust`` comes from the decay
    of all the slopes with the lag and is not (Wilting and Priesemann 2018). ``slopes`` are those of the lags 1, 2, ….
    """

    naive: float
    robust: float
    slopes: tuple[float, ...]


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


def cascade_sizes(series: Iterable[ArrayLike]) -> Counts:
    """Sizes of the cascades in series of activity, one for each sequence; those cut by an end of theirs are left out.

    A cut cascade has an unknown size: counting it would bend the distribution at large sizes.
    """
    sizes: list[int] = []
    for values in series:
        counts = np.asarray(values, dtype=np.int64)
        quiet = np.flatnonzero(counts == 0)
        sizes += [int(counts[start:stop].sum()) for start, stop in pairwise(quiet) if stop > start + 1]
    return np.array(sizes, dtype=np.int64)


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


def threshold_scan(
    sequences: Sequence[ArrayLike], thresholds: Sequence[float]
) -> dict[float, tuple[Counts, Branching | None]]:
    """Sizes of cascades and branching ratio at every threshold.

    Args:
        sequences: signals [units, time] of each sequence; means and deviations are the sequence's own.
    """
    result = {}
    for threshold in thresholds:
        series = [activity(signals, threshold) for signals in sequences]
        result[float(threshold)] = cascade_sizes(series), branching_ratio(series)
    return result
