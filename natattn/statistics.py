"""Small statistics that tracking, analysis and reports share."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


def time_to_target(steps: ArrayLike, values: ArrayLike, target: float) -> int | None:
    """The first of `steps` at which its value is `target` or less; None if there is none (the time is censored).

    A value that is not a number has not reached anything.
    """
    reached = np.flatnonzero(np.asarray(values, dtype=np.float64) <= target)
    return int(np.asarray(steps)[reached[0]]) if reached.size else None


def mean(values: Sequence[float]) -> float:
    """The mean; nan for no values."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (n − 1); nan for fewer than two values."""
    if len(values) < 2:
        return math.nan
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its Student t interval; a half-width of nan for fewer than two values.

    Of paired differences it is the paired t interval.
    """
    if len(values) < 2:
        return mean(values), math.nan
    quantile = float(stdtrit(len(values) - 1, 0.5 + confidence / 2))
    return mean(values), quantile * standard_deviation(values) / math.sqrt(len(values))


def slope_interval(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Slope of the least-squares line of y on x, and half the width of its t interval; nan for fewer than 3 points."""
    horizontal, vertical = (np.asarray(values, dtype=np.float64) for values in (x, y))
    horizontal, vertical = horizontal - horizontal.mean(), vertical - vertical.mean()
    square = float(horizontal @ horizontal)
    slope = float(horizontal @ vertical) / square if square else math.nan
    if len(horizontal) < 3:
        return slope, math.nan
    rest = vertical - slope * horizontal
    error = math.sqrt(float(rest @ rest) / (len(rest) - 2) / square) if square else math.nan
    return slope, float(stdtrit(len(rest) - 2, 0.5 + confidence / 2)) * error
