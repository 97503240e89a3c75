"""Statistics of every comparison: paired tests, intervals, multiplicity, verdicts, time to a target.

Differences are taken within a seed, dᵢ = candidateᵢ − baselineᵢ, so that below zero is better for a loss. The variance
is estimated from the comparison itself.
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
Side = Literal["below", "above"]

LEAST_FOR_A_CLAIM = 5  # seeds
LEAST_FOR_SIGN_FLIPS = 9  # with fewer seeds the smallest possible p-value, 2^(1 − n), is too large to be informative
_EXACT_SIGN_FLIPS = 16  # largest number of seeds for which all 2^n signs are enumerated
_SAMPLED_SIGN_FLIPS = 100_000


def time_to_target(times: ArrayLike, values: ArrayLike, target: float) -> float | None:
    """Return the first of ``times`` (steps or seconds) whose value is at most ``target``.

    None if there is none: the time is censored. A value of nan never reaches a target.
    """
    reached = np.flatnonzero(np.asarray(values, dtype=np.float64) <= target)
    return np.asarray(times)[reached[0]].item() if reached.size else None  # type: ignore[no-any-return]


def mean(values: Sequence[float]) -> float:
    """Return the mean; nan for no values."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation, with n − 1 in the denominator; nan for fewer than two values."""
    if len(values) < 2:
        return math.nan
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean d̄ and the half-width t_{n−1, (1+confidence)/2} · s/√n of Student's interval (Student 1908).

    For paired differences this is the paired t interval. The half-width is nan for fewer than two values.
    """
    if len(values) < 2:
        return mean(values), math.nan
    quantile = float(stdtrit(len(values) - 1, 0.5 + confidence / 2))
    return mean(values), quantile * standard_deviation(values) / math.sqrt(len(values))


def slope_interval(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the least-squares slope b of y on x and the half-width of its t interval.

    b = Σ(x − x̄)(y − ȳ) / Σ(x − x̄)², with standard error √(Σe² / (n − 2) / Σ(x − x̄)²) and n − 2 degrees of freedom. The
    half-width is nan for fewer than three points.
    """
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
    """Mean of paired differences with its interval and p-values.

    Attributes:
        count: number of pairs.
        interval: of the mean, at the confidence that ``differences_of`` assigns; nan for fewer than two pairs.
        p_value: of Student's paired t test, two-sided, adjusted by Holm's procedure.
        sign_flip_p_value: of the sign-flip permutation test, not adjusted; None below ``LEAST_FOR_SIGN_FLIPS`` pairs.
    """

    mean: float
    count: int
    interval: tuple[float, float]
    p_value: float
    sign_flip_p_value: float | None


def paired_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test that the mean of paired differences is zero.

    nan for fewer than two differences; 1 if all are equal, because equal numbers carry no information on their spread.
    """
    count, spread = len(differences), standard_deviation(differences)
    if count < 2:
        return math.nan
    if spread == 0:
        return 1.0
    return 2 * float(stdtr(count - 1, -abs(mean(differences)) / spread * math.sqrt(count)))


def sign_flip_p_value(differences: Sequence[float], *, seed: int = 0) -> float:
    """Return the share of the 2ⁿ sign patterns ±dᵢ whose |mean| is at least the observed one (Fisher 1935).

    Exact for at most 16 differences. For more, it is estimated from 100,000 seeded draws that include the observed
    signs, so that it is never zero. nan for no differences.
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
    # Sums that are equal up to rounding count as equal.
    return float((sums >= abs(values.sum()) * (1 - 1e-12) - 1e-300).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order (Holm 1979).

    The k-th smallest of m p-values becomes max over j ≤ k of min(1, (m − j + 1) p_j). nan stays nan and does not count.
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def holm_levels(p_values: Sequence[float], confidence: float = 0.95) -> list[float]:
    """Return the confidence of the interval that belongs to each of Holm's adjusted p-values, α = 1 − confidence.

    The k-th smallest of m p-values, if it is rejected, has level 1 − α/(m − k + 1). Those that are not rejected have
    the level at which the procedure stopped. So an interval excludes zero exactly if its hypothesis is rejected.
    """
    alpha, tests = 1 - confidence, sum(not math.isnan(p) for p in p_values)
    rejected = sum(p < alpha for p in holm(p_values))
    order = sorted((index for index, p in enumerate(p_values) if not math.isnan(p)), key=lambda index: p_values[index])
    ranks = {index: min(rank, rejected) for rank, index in enumerate(order)}
    return [1 - alpha / max(1, tests - ranks.get(index, 0)) for index in range(len(p_values))]


def differences_of(samples: Sequence[Sequence[float]], *, confidence: float = 0.95) -> list[Difference]:
    """Return the comparisons of one table: Holm-adjusted p-values and the t intervals that belong to them.

    The adjustment controls the exclusion of zero: with probability ``confidence`` no true zero is excluded anywhere in
    the table. Simultaneous coverage of all true means is slightly lower (0.90 to 0.95), as Holm's procedure leaves it.
    An interval excludes zero exactly if Holm's procedure rejects (see ``holm_levels``). A single sample gets the
    ordinary t interval.

    Args:
        samples: paired differences, one sequence for each comparison; fewer than two pairs give nan.
    """
    raw = [paired_p_value(sample) for sample in samples]
    differences = []
    for sample, p_value, level in zip(samples, holm(raw), holm_levels(raw, confidence), strict=True):
        centre, half = t_interval(sample, level)
        if half == 0 and centre != 0:
            half = math.inf  # equal numbers, such as counted steps, carry no information on their spread
        flips = sign_flip_p_value(sample) if len(sample) >= LEAST_FOR_SIGN_FLIPS else None
        differences.append(Difference(centre, len(sample), (centre - half, centre + half), p_value, flips))
    return differences


def excludes_zero(difference: Difference, side: Side) -> bool:
    """Return whether the whole interval is on that side of zero; False for an interval of nan."""
    low, high = difference.interval
    return high < 0 if side == "below" else low > 0


def verdict(
    difference: Difference,
    *,
    indifference: float,
    claimed: Side = "below",
    placebos: Sequence[Difference] = (),
    complete: bool = True,
) -> Verdict:
    """Return the verdict of a comparison on a claim (protocol, 4 and 7).

    - ``supported``: the interval excludes zero in the claimed direction, so does the interval of the difference to
      every
      placebo, and none of at least ``LEAST_FOR_A_CLAIM`` seeds is missing or diverged.
    - ``refuted``: the interval excludes zero in the other direction.
    - ``no effect``: the interval is inside ±``indifference``.
    - ``inconclusive``: otherwise.

    Args:
        indifference: δ, declared before the runs, in the unit of the difference.
        claimed: side of zero on which the claim expects the difference.
        placebos: candidate minus each placebo.
        complete: whether no run is missing, diverged or stopped.
    """
    if difference.count < LEAST_FOR_A_CLAIM:
        return "inconclusive"
    if excludes_zero(difference, "above" if claimed == "below" else "below"):
        return "refuted"
    if complete and all(excludes_zero(required, claimed) for required in (difference, *placebos)):
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
    """Return bootstrap bounds of a statistic to which Student's t does not apply: a median, a share, a ratio.

    The bounds are bias-corrected and accelerated (Efron 1987), or plain percentiles if those are undefined, for example
    because the jackknife does not vary. Both are too narrow for fewer than about ten values. nan for fewer than two.

    Args:
        statistic: function of an array; it is much faster if it takes an ``axis``.
    """
    from scipy.stats import bootstrap  # takes a second to import

    def bounds(method: str) -> tuple[float, float]:
        result = bootstrap(
            (np.asarray(values, dtype=np.float64),), statistic, method=method, confidence_level=confidence,
            n_resamples=resamples, rng=np.random.default_rng(seed),
        )  # fmt: skip
        return float(result.confidence_interval.low), float(result.confidence_interval.high)

    if len(values) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # SciPy warns if BCa is undefined; then its bounds are nan
        bca = bounds("BCa")
        return bounds("percentile") if any(map(math.isnan, bca)) else bca
