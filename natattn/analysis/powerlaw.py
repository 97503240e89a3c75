"""Power laws in samples: exponent, lower bound, goodness of fit by bootstrap, and rival distributions.

The method of Clauset, Shalizi and Newman (2009): the exponent by maximum likelihood above the lower bound that brings
the fit nearest to the data in the Kolmogorov–Smirnov distance, and a p-value from samples of the fitted law that go
through the same procedure, lower bound included. Rival distributions are fitted by the ``powerlaw`` package (Alstott,
Bullmore and Plenz 2014), which has no such p-value; the law with a cutoff is fitted here.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import chdtrc, logsumexp, zeta

Values = NDArray[np.float64]

RIVALS = ("lognormal", "exponential", "stretched_exponential")
LEAST_TAIL = 20  # values that a fit needs at or above its lower bound
# Of the sample, that a searched bound leaves: a few of the largest values of almost any sample pass for a power law.
LEAST_SHARE = 0.1
MOST_BOUNDS = 100  # that are tried, evenly spaced among the different values
_EXPONENTS = np.linspace(1.01, 6.0, 500)
_TABLE = 1 << 16  # discrete values that are drawn exactly; above, the law is continuous to one part in a thousand


@dataclass(frozen=True)
class TailFit:
    """P(x) ∝ x^(−exponent) for x ≥ minimum; ``tail`` values are there, at the KS ``distance`` from the law."""

    exponent: float
    minimum: float
    tail: int
    distance: float


@dataclass(frozen=True)
class Rival:
    """Log-likelihood of the power law minus the rival's on the same tail; negative favours the rival.

    ``p_value`` is for the hypothesis that neither is better (Vuong's test; for the law with a cutoff, which contains
    the power law, the likelihood-ratio test).
    """

    log_ratio: float
    p_value: float


@dataclass(frozen=True)
class PowerLaw:
    """Evidence of a sample about a power law.

    Attributes:
        fit: the best fit; None where there are too few different values.
        interval: 95 % percentile interval of the exponent, over resampled data; None without replicas that have a fit.
        p_value: share of samples of the fitted law that lie further from their own fit; below 0.1 the law is refuted.
            None without replicas.
        rivals: by name, on the fitted tail; "cutoff" is x^(−τ) exp(−x/s_c).
        cutoff: s_c, and ``cutoff_exponent`` its τ; infinite and the exponent itself where no cutoff fits better.
    """

    count: int
    fit: TailFit | None
    interval: tuple[float, float] | None
    p_value: float | None
    replicas: int
    rivals: Mapping[str, Rival]
    cutoff: float | None
    cutoff_exponent: float | None


def analyse_power_law(
    values: ArrayLike,
    *,
    discrete: bool,
    replicas: int = 0,
    seed: int = 0,
    processes: int = 1,
    minimum: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> PowerLaw:
    """Fit, test and compare.

    Args:
        values: positive numbers; whole ones if ``discrete``.
        replicas: samples for the p-value, and as many for the interval; the p-value's error is about ½/√replicas.
        seed: replica i is a function of (seed, i), whatever the number of processes.
        minimum: the lower bound, where it is known beforehand; None to search for it.
        advance: told how many replicas are done more, for a progress bar.

    Raises: ValueError for values that are not positive or not finite, or not whole although discrete.
    """
    sample = _checked(values, discrete)
    fit_again = partial(fit_tail, discrete=discrete, minimum=minimum)
    fit = fit_again(sample)
    if fit is None:
        return PowerLaw(len(sample), None, None, None, 0, {}, None, None)
    interval = p_value = None
    if replicas:
        replica = partial(_replica, sample, fit, discrete, fit_again, seed)
        results = np.array(_map(replica, replicas, processes, advance))
        exponents = results[np.isfinite(results[:, 1]), 1]
        if len(exponents):
            interval = (float(np.quantile(exponents, 0.025)), float(np.quantile(exponents, 0.975)))
        p_value = float(np.mean(results[:, 0] >= fit.distance))
    cutoff, cutoff_exponent, gain = fit_cutoff(sample, fit, discrete=discrete)
    rivals = {"cutoff": Rival(-gain, float(chdtrc(1, 2 * gain))), **_rivals(sample, fit, discrete)}
    return PowerLaw(len(sample), fit, interval, p_value, replicas, rivals, cutoff, cutoff_exponent)


def fit_tail(values: ArrayLike, *, discrete: bool, minimum: float | None = None) -> TailFit | None:
    """Exponent by maximum likelihood, lower bound by the least KS distance; None with fewer than LEAST_TAIL values.

    Continuous: exponent = 1 + n / Σ ln(x/minimum). Discrete: the maximum of −exponent Σ ln x − n ln ζ(exponent,
    minimum), from 1.01 to 6. Arguments as of ``analyse_power_law``.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    least = max(LEAST_TAIL, math.ceil(LEAST_SHARE * len(ordered)))
    if minimum is not None:
        ordered, least = ordered[ordered >= minimum], LEAST_TAIL
    if len(ordered) < least:
        return None
    unique = np.unique(ordered[: len(ordered) - least + 1]) if minimum is None else np.array([minimum])
    if len(unique) > MOST_BOUNDS:
        unique = unique[np.linspace(0, len(unique) - 1, MOST_BOUNDS).round().astype(int)]
    logs = np.log(ordered)
    log_sums = np.cumsum(logs[::-1])[::-1]  # of every tail
    best: TailFit | None = None
    for bound in map(float, unique):
        start = int(np.searchsorted(ordered, bound))
        tail = ordered[start:]
        if tail[0] == tail[-1]:
            continue
        exponent = _exponent(float(log_sums[start]), len(tail), bound, discrete)
        distance = _distance(tail, exponent, bound, discrete)
        if best is None or distance < best.distance:
            best = TailFit(exponent, bound, len(tail), distance)
    return best


def fit_cutoff(values: ArrayLike, fit: TailFit, *, discrete: bool) -> tuple[float, float, float]:
    """Maximum likelihood of x^(−τ) exp(−x/s_c) on the tail of a fit.

    Returns: s_c (inf where the power law is as likely), τ, and the gain in log-likelihood over the power law, ≥ 0.
    """
    tail = np.asarray(values, dtype=np.float64)
    tail = tail[tail >= fit.minimum]
    log_sum, total, count = np.log(tail).sum(), tail.sum(), len(tail)

    def loss(parameters: NDArray[np.float64]) -> float:
        exponent, rate = parameters[0], math.exp(parameters[1])
        norm = _log_norm(exponent, rate, fit.minimum, discrete)
        return float((exponent * log_sum + rate * total) / count + norm)

    pure = -loss(np.array([fit.exponent, -math.inf]))
    starts = [(fit.exponent, -math.log(tail.max())), (1.0, -math.log(tail.mean()))]
    best = min((minimize(loss, start, method="Nelder-Mead") for start in starts), key=lambda found: float(found.fun))
    gain = count * (-float(best.fun) - pure)
    if not gain > 0:
        return math.inf, fit.exponent, 0.0
    return math.exp(-best.x[1]), float(best.x[0]), gain


def _log_norm(exponent: float, rate: float, minimum: float, discrete: bool) -> float:
    """log of Σ or ∫ of x^(−exponent) exp(−rate·x) from the minimum upwards.

    The integral on a logarithmic grid; the sum term by term for a thousand terms, then the integral from half a step
    below the next.
    """
    if rate == 0:
        return (
            math.log(zeta(exponent, minimum))
            if discrete
            else (1 - exponent) * math.log(minimum) - math.log(exponent - 1)
        )
    start, terms = minimum, np.empty(0)
    if discrete:
        points = minimum + np.arange(1000)
        terms, start = -exponent * np.log(points) - rate * points, minimum + 999.5
    # Beyond 40 cutoffs nothing is left.
    logs = np.linspace(math.log(start), math.log(start + 40 / rate), 2000)
    weights = np.full(len(logs), math.log(logs[1] - logs[0]))
    weights[[0, -1]] += math.log(0.5)
    area = (1 - exponent) * logs - rate * np.exp(logs) + weights
    return float(logsumexp(np.concatenate([terms, area])))


def draw(fit: TailFit, count: int, generator: np.random.Generator, *, discrete: bool) -> Values:
    """Samples of the law from its lower bound upwards."""
    uniform = 1.0 - generator.random(count)  # in (0, 1]
    if not discrete:
        return np.asarray(fit.minimum * uniform ** (-1 / (fit.exponent - 1)))
    survival = zeta(fit.exponent, fit.minimum + np.arange(_TABLE)) / zeta(fit.exponent, fit.minimum)
    # The number of k ≥ 1 with P(x ≥ minimum + k) ≥ u.
    steps = np.searchsorted(-survival, -uniform, side="right") - 1
    result = fit.minimum + steps
    beyond = steps == _TABLE - 1
    start = fit.minimum + _TABLE - 1.5
    shrunk = uniform[beyond] / survival[-1]
    result[beyond] = np.floor(start * shrunk ** (-1 / (fit.exponent - 1)) + 0.5)
    return np.asarray(result, dtype=np.float64)


def _checked(values: ArrayLike, discrete: bool) -> Values:
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(sample).all() or (sample <= 0).any():
        raise ValueError("values: power laws are of positive, finite numbers")
    if discrete and (sample != np.floor(sample)).any():
        raise ValueError("values: discrete=True needs whole numbers")
    return sample


def _exponent(log_sum: float, count: int, minimum: float, discrete: bool) -> float:
    if not discrete:
        return 1 + count / (log_sum - count * math.log(minimum))
    likelihood = -_EXPONENTS * log_sum - count * np.log(zeta(_EXPONENTS, minimum))
    top = int(np.clip(np.argmax(likelihood), 1, len(_EXPONENTS) - 2))
    left, middle, right = likelihood[top - 1 : top + 2]
    curvature = left - 2 * middle + right
    shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    return float(_EXPONENTS[top] + np.clip(shift, -1, 1) * (_EXPONENTS[1] - _EXPONENTS[0]))


def _distance(tail: Values, exponent: float, minimum: float, discrete: bool) -> float:
    """Largest distance of the two distribution functions; ``tail`` is sorted."""
    count = len(tail)
    if discrete:
        points, first = np.unique(tail, return_index=True)
        empirical = 1 - first / count  # P(x ≥ point)
        law = zeta(exponent, points) / zeta(exponent, minimum)
        # The law also differs just above a point, where the empirical function has stepped down already.
        above = zeta(exponent, points + 1) / zeta(exponent, minimum)
        stepped = np.append(empirical[1:], 0.0)
        return float(max(np.abs(empirical - law).max(), np.abs(stepped - above).max()))
    law = 1 - (tail / minimum) ** (1 - exponent)
    ranks = np.arange(count)
    return float(max((law - ranks / count).max(), ((ranks + 1) / count - law).max()))


def _replica(
    sample: Values,
    fit: TailFit,
    discrete: bool,
    fit_again: Callable[[Values], TailFit | None],
    seed: int,
    index: int,
) -> tuple[float, float]:
    """KS distance of a sample like the fitted one, and the exponent of resampled data."""
    generator = np.random.default_rng((seed, index))
    below = sample[sample < fit.minimum]
    in_tail = int(generator.binomial(len(sample), fit.tail / len(sample)))
    drawn = draw(fit, in_tail, generator, discrete=discrete)
    rest = generator.choice(below, len(sample) - in_tail) if len(below) else drawn[:0]
    synthetic = fit_again(np.concatenate([drawn, rest]))
    again = fit_again(generator.choice(sample, len(sample)))
    return (
        np.nan if synthetic is None else synthetic.distance,
        np.nan if again is None else again.exponent,
    )


def _map(
    function: Callable[[int], tuple[float, float]],
    count: int,
    processes: int,
    advance: Callable[[int], None] | None,
) -> Sequence[tuple[float, float]]:
    results = []
    if processes == 1:
        for index in range(count):
            results.append(function(index))
            if advance is not None:
                advance(1)
        return results
    with ProcessPoolExecutor(processes) as pool:
        for result in pool.map(function, range(count), chunksize=max(1, count // (8 * processes))):
            results.append(result)
            if advance is not None:
                advance(1)
    return results


def _rivals(sample: Values, fit: TailFit, discrete: bool) -> dict[str, Rival]:
    import powerlaw  # takes a second to import

    rivals = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fits near the edge of their ranges, which the ratios show as well
        theirs: Any = powerlaw.Fit(sample, discrete=discrete, xmin=fit.minimum, verbose=False)
        for name in RIVALS:
            ratio, p_value = theirs.distribution_compare("power_law", name)
            if np.isfinite(ratio) and np.isfinite(p_value):
                rivals[name] = Rival(float(ratio), float(p_value))
    return rivals
