import itertools
import math
import warnings

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import CensoredData, bootstrap, ecdf, norm

from natattn.statistics.paired import bootstrap_interval
from natattn.statistics.profiles import TimesToTarget, performance_profile, profile_scores, times_to_target

INF, NAN = math.inf, math.nan


# Intervals by resampling.


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std], ids=lambda function: function.__name__)
@pytest.mark.parametrize("count", [8, 30])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_bootstrap_is_scipys_bca(statistic, count: int, confidence: float) -> None:
    values = np.random.default_rng(count).exponential(1.0, count)
    expected = bootstrap(
        (values,), statistic, confidence_level=confidence, n_resamples=2000, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    found = bootstrap_interval(list(values), statistic, confidence, seed=3, resamples=2000)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_bootstrap_of_a_normal_mean_is_the_z_interval() -> None:
    values = norm.ppf((np.arange(400) + 0.5) / 400)
    half = 1.959964 * float(np.std(values)) / 20
    assert bootstrap_interval(list(values)) == pytest.approx((-half, half), abs=0.006)


def test_bootstrap_falls_back_to_percentiles_where_bca_is_undefined() -> None:
    # The mean of what does not vary, and a statistic that no single value changes: BCa divides zero by zero.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_interval([2.5] * 6) == (2.5, 2.5)
        low, high = bootstrap_interval([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], lambda sample: float(sample.mean() >= 0.5))
    assert (low, high) == (0.0, 1.0)


def test_bootstrap_of_fewer_than_two_is_unknown_and_a_seed_repeats_it() -> None:
    assert all(map(math.isnan, bootstrap_interval([])))
    assert all(map(math.isnan, bootstrap_interval([1.0])))
    values = [0.3, 1.9, 2.2, 0.7, 5.0]
    assert bootstrap_interval(values, seed=1, resamples=500) == bootstrap_interval(values, seed=1, resamples=500)
    assert bootstrap_interval(values, seed=1, resamples=500) != bootstrap_interval(values, seed=2, resamples=500)


# Times, some of them censored.


def run(losses: list[float], target: float = 1.0, budget: float = 100.0):
    return list(range(0, 20 * len(losses), 20)), losses, target, budget


@pytest.mark.parametrize(
    ("given", "time", "reached"),
    [
        (run([3.0, 2.0, 1.0, 0.5]), 40.0, True),
        (run([3.0, 2.0, 1.5]), 100.0, False),
        (run([3.0, NAN, NAN]), 100.0, False),
        (run([]), 100.0, False),
        (run([3.0, 2.0, 2.0, 2.0, 2.0, 1.0]), 100.0, True),  # at the budget it is reached
        (run([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5]), 100.0, False),  # behind it, it is not
        (run([0.5]), 0.0, True),
    ],
)
def test_a_run_that_does_not_arrive_is_censored_at_its_budget(given, time: float, reached: bool) -> None:
    assert times_to_target([given]) == TimesToTarget((time,), (reached,))


@pytest.mark.parametrize("budget", [0.0, -1.0, INF, NAN])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        times_to_target([run([1.0], budget=budget)])


@pytest.mark.parametrize("seed", range(10))
def test_the_mean_of_the_times_is_the_area_below_the_survival_curve(seed: int) -> None:
    """Against scipy's Kaplan–Meier estimate, integrated up to the budget."""
    budget = 100.0
    random = np.random.default_rng(seed)
    arrivals = np.ceil(random.exponential(80.0, 9))
    found = times_to_target(
        [([0.0, arrival], [2.0, 0.5], 1.0, budget) if arrival <= budget else ([0.0], [2.0], 1.0, budget)
         for arrival in arrivals]
    )  # fmt: skip
    survival = ecdf(CensoredData(arrivals[arrivals <= budget], right=np.full((arrivals > budget).sum(), budget))).sf
    edges = np.concatenate([[0.0], survival.quantiles[survival.quantiles < budget], [budget]])
    area = sum((end - start) * survival.evaluate(start) for start, end in itertools.pairwise(edges))
    assert np.mean(found.times) == pytest.approx(area)
    assert found.reached == tuple(arrivals <= budget)


# Performance profiles.

TIMES = {"a": [10.0, 20.0, INF, INF], "b": [20.0, 10.0, 30.0, INF], "c": [10.0, 15.0, 90.0, NAN]}


@pytest.mark.parametrize(
    ("ratio", "a", "b", "c"),
    [
        (0.5, 0.0, 0.0, 0.0),
        (1.0, 0.25, 0.5, 0.25),
        (1.49, 0.25, 0.5, 0.25),
        (1.5, 0.25, 0.5, 0.5),
        (2.0, 0.5, 0.75, 0.5),
        (3.0, 0.5, 0.75, 0.75),
        (INF, 0.5, 0.75, 0.75),
    ],
)
def test_performance_profile_by_hand(ratio: float, a: float, b: float, c: float) -> None:
    found = performance_profile(TIMES, [ratio])
    assert {arm: float(shares[0]) for arm, shares in found.items()} == {"a": a, "b": b, "c": c}


def test_a_ratio_that_is_the_factor_but_for_rounding_is_within_it() -> None:
    assert 4.2 / 3.0 > 1.4
    assert performance_profile({"a": [4.2], "b": [3.0]}, [1.4])["a"] == [1.0]
    assert performance_profile({"a": [4.2001], "b": [3.0]}, [1.4])["a"] == [0.0]


def test_who_needs_no_time_is_the_best() -> None:
    found = performance_profile({"a": [0.0], "b": [5.0]}, [1.0, 1e9])
    assert list(found["a"]) == [1.0, 1.0]
    assert list(found["b"]) == [0.0, 0.0]


@pytest.mark.parametrize("largest", [1.5, 4.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_mean_score_is_the_area_below_the_profile(seed: int, largest: float) -> None:
    random = np.random.default_rng(seed)
    times = {arm: list(np.where(random.random(12) < 0.2, INF, random.lognormal(0, 0.7, 12))) for arm in "abc"}
    grid = np.linspace(1, largest, 200_001)
    profile = performance_profile(times, grid)
    for arm, scores in profile_scores(times, largest).items():
        assert scores.mean() == pytest.approx(trapezoid(profile[arm], grid) / (largest - 1), abs=1e-4)


def test_scores_by_hand() -> None:
    scores = profile_scores({"best": [1.0, 2.0], "lost": [INF, INF], "late": [2.5, 80.0], "last": [4.0, 8.0]}, 4.0)
    found = {arm: of_arm.tolist() for arm, of_arm in scores.items()}
    assert found == {"best": [1.0, 1.0], "lost": [0.0, 0.0], "late": [0.5, 0.0], "last": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("times", "message"),
    [({"a": [1.0], "b": [1.0, 2.0]}, "every arm"), ({"a": []}, "no workloads"), ({}, "no workloads"),
     ({"a": [-1.0]}, "below zero")],
)  # fmt: skip
def test_profiles_of_what_cannot_be_compared_are_refused(times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        performance_profile(times, [1.0])
    with pytest.raises(ValueError, match=message):
        profile_scores(times)


def test_scores_need_a_range() -> None:
    with pytest.raises(ValueError, match="above 1"):
        profile_scores(TIMES, 1.0)
