"""Holm's rule for numbers of which a least-squares fit or a mean is known by its t interval alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from natattn.statistics.paired import Difference, holm, holm_levels, t_interval

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """A number with its 95 % t interval, which is symmetric: value ± t(0.975, degrees)·s.

    Attributes:
        degrees: of freedom that are left: points less fitted numbers.
        count: points.
    """

    value: float
    low: float
    high: float
    degrees: int
    count: int

    @property
    def error(self) -> float:
        """s, the standard error; nan where the interval or the degrees of freedom are not known."""
        if self.degrees < 1 or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return math.nan
        return (self.high - self.low) / 2 / float(stdtrit(self.degrees, 0.5 + _CONFIDENCE / 2))

    def p_value(self, against: float) -> float:
        """Two-sided, of Student's t test that the number is ``against``; nan where the error is not known."""
        distance = abs(self.value - against)
        if math.isnan(self.error) or math.isnan(distance):
            return math.nan
        if self.error == 0:
            return 1.0  # numbers that happen to be equal say nothing of their spread
        return 2 * float(stdtr(self.degrees, -distance / self.error))


def mean_of(sample: Sequence[float]) -> Fit:
    """The mean of repetitions as a fit."""
    centre, half = t_interval(sample)
    return Fit(centre, centre - half, centre + half, len(sample) - 1, len(sample))


def adjusted(fits: Sequence[Fit], against: float = 0.0) -> list[Difference]:
    """Each number less ``against``, by the one rule of ``statistics.differences_of``, whose twin for fits this is."""
    raw = [fit.p_value(against) for fit in fits]
    corrected, levels = holm(raw), holm_levels(raw, _CONFIDENCE)
    found = []
    for place, fit in enumerate(fits):
        half = float(stdtrit(fit.degrees, 0.5 + levels[place] / 2)) * fit.error if fit.degrees > 0 else math.nan
        centre = fit.value - against
        if half == 0 and centre != 0:
            half = math.inf
        found.append(Difference(centre, fit.count, (centre - half, centre + half), corrected[place], None))
    return found
