"""The statistics of every comparison: paired tests, intervals, multiplicity, verdicts, time to a target.

Differences are taken within a seed, candidate − baseline, so that below zero is better for a loss. Variance is that of
the comparison itself, never assumed.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

Verdict = Literal["supported", "refuted", "no effect", "inconclusive"]

LEAST_FOR_A_CLAIM = 5  # seeds
LEAST_FOR_SIGN_FLIPS = 9  # below, the smallest possible p-value says little
_EXACT_SIGN_FLIPS = 16  # seeds up to which every one of the 2^n signs is tried
_SAMPLED_SIGN_FLIPS = 100_000


def time_to_target(times: ArrayLike, values: ArrayLike, target: float) -> float | None:
    """The first of `times`, steps or seconds, at which its value is `target` or less.

    None if there is none: the time is censored. A value that is not a number has not reached anything.
    """
    reached = np.flatnonzero(np.asarray(values, dtype=np.float64) <= target)
    return np.asarray(times)[reached[0]].item() if reached.size else None  # type: ignore[no-any-return]


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


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and what may be said of it.

    Attributes:
        count: pairs.
        interval: of the mean, at the confidence that the table's rule gives it; nan for fewer than two pairs.
        p_value: of Student's paired t test, two-sided, adjusted by the same rule.
        sign_flip_p_value: of the permutation of signs, not adjusted; None below ``LEAST_FOR_SIGN_FLIPS`` pairs.
    """

    mean: float
    count: int
    interval: tuple[float, float]
    p_value: float
    sign_flip_p_value: float | None


def paired_p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of Student's t test that the mean of paired differences is zero; nan for fewer than two."""
    count, spread = len(differences), standard_deviation(differences)
    if count < 2:
        return math.nan
    if spread == 0:
        return 1.0  # of numbers that happen to be equal nothing is known
    return 2 * float(stdtr(count - 1, -abs(mean(differences)) / spread * math.sqrt(count)))


def sign_flip_p_value(differences: Sequence[float], *, seed: int = 0) -> float:
    """Share of the 2ⁿ ways to choose signs whose |mean| is at least the one seen; nan for no differences.

    Exact up to 16 differences, else from 100,000 seeded draws with the seen one among them (so that it is never zero).
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count == 0:
        return math.nan
    if count <= _EXACT_SIGN_FLIPS:
        bits = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1  # the other half are their negatives
        signs = 1.0 - 2.0 * bits
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (_SAMPLED_SIGN_FLIPS - 1, count))
        signs = np.concatenate([np.ones((1, count)), signs])
    sums = np.abs(signs @ values)
    # Sums that are equal but for rounding count as equal.
    return float((sums >= abs(values.sum()) * (1 - 1e-12) - 1e-300).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979); those that are nan take no part and stay nan."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def holm_levels(p_values: Sequence[float], confidence: float = 0.95) -> list[float]:
    """The confidence of each interval that belongs to Holm's adjusted p-values, α = 1 − confidence.

    The k-th smallest of m p-values that is rejected has 1 − α/(m − k + 1), those that are not have the level at which
    the procedure stopped. So an interval excludes what was tested exactly where it is rejected.
    """
    alpha, tests = 1 - confidence, sum(not math.isnan(p) for p in p_values)
    rejected = sum(p < alpha for p in holm(p_values))
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda place: p_values[place])
    ranks = {place: min(rank, rejected) for rank, place in enumerate(order)}
    return [1 - alpha / max(1, tests - ranks.get(place, 0)) for place in range(len(p_values))]


def differences_of(samples: Sequence[Sequence[float]], *, confidence: float = 0.95) -> list[Difference]:
    """The comparisons of one table, by one rule: Holm-adjusted p-values and the t intervals that belong to them.

    What is adjusted is the exclusion of zero: no true zero is excluded anywhere in the table with probability 1 − α.
    All intervals together hold all true means a little less often (0.90 to 0.95), as Holm's procedure leaves them.

    An interval excludes zero exactly where Holm's procedure rejects at 1 − confidence (``holm_levels``). With one
    sample that is the ordinary t interval.

    Args:
        samples: paired differences, one sequence for each comparison; fewer than two pairs give nan.
    """
    raw = [paired_p_value(sample) for sample in samples]
    adjusted, levels = holm(raw), holm_levels(raw, confidence)
    found = []
    for place, sample in enumerate(samples):
        centre, half = t_interval(sample, levels[place])
        if half == 0 and centre != 0:
            half = math.inf  # numbers that happen to be equal, as of counted steps, say nothing of their spread
        flips = sign_flip_p_value(sample) if len(sample) >= LEAST_FOR_SIGN_FLIPS else None
        found.append(Difference(centre, len(sample), (centre - half, centre + half), adjusted[place], flips))
    return found


def excludes_zero(difference: Difference, side: Literal["below", "above"]) -> bool:
    """Whether the whole interval lies on that side of zero; one of nan does not."""
    low, high = difference.interval
    return high < 0 if side == "below" else low > 0


def verdict(
    difference: Difference,
    *,
    indifference: float,
    claimed: Literal["below", "above"] = "below",
    placebos: Sequence[Difference] = (),
    complete: bool = True,
) -> Verdict:
    """What a comparison says of a claim (protocol, 4 and 7), and nothing else.

    ``supported``: the interval excludes zero in the claimed direction, and so does that of the difference to every
    placebo, from at least ``LEAST_FOR_A_CLAIM`` seeds of which none is missing or diverged. ``refuted``: it excludes
    zero in the other direction. ``no effect``: it lies inside ±indifference. Else ``inconclusive``.

    Args:
        indifference: δ, declared before the runs, in the unit of the difference.
        claimed: where the claim says that the difference is.
        placebos: candidate minus each placebo.
        complete: no run is missing, diverged or stopped.
    """
    if difference.count < LEAST_FOR_A_CLAIM:
        return "inconclusive"
    if excludes_zero(difference, "above" if claimed == "below" else "below"):
        return "refuted"
    if complete and all(excludes_zero(found, claimed) for found in (difference, *placebos)):
        return "supported"
    if all(abs(bound) <= indifference for bound in difference.interval):
        return "no effect"
    return "inconclusive"


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 9_999,
) -> tuple[float, float]:
    """Bounds of a statistic by resampling the values, where Student's t does not apply: medians, shares, ratios.

    Bias-corrected and accelerated (Efron 1987); where that is undefined, as when a jackknife does not vary, the plain
    percentiles. Below about ten values both are too narrow. Bounds of nan for fewer than two values.

    Args:
        statistic: of an array; along ``axis`` if it takes one, which is much faster.
    """
    from scipy.stats import bootstrap  # takes a second to import

    def bounds(method: str) -> tuple[float, float]:
        found = bootstrap(
            (np.asarray(values, dtype=np.float64),), statistic, method=method, confidence_level=confidence,
            n_resamples=resamples, rng=np.random.default_rng(seed),
        )  # fmt: skip
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    if len(values) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # that BCa is undefined is what its bounds say
        found = bounds("BCa")
        return bounds("percentile") if any(map(math.isnan, found)) else found
