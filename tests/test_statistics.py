import math
import statistics as python_statistics

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_1samp

from natattn.statistics.paired import (
    Difference,
    differences_of,
    holm,
    mean,
    paired_p_value,
    sign_flip_p_value,
    standard_deviation,
    t_interval,
    time_to_target,
    verdict,
)


def test_time_to_target_is_the_first_step_at_or_below_it() -> None:
    steps, values = np.array([0, 10, 20, 30]), np.array([5.0, 4.0, 4.5, 3.0])
    assert time_to_target(steps, values, 4.0) == 10
    assert time_to_target(steps, values, 3.99) == 30
    assert time_to_target(steps, values, 2.0) is None
    assert time_to_target([], [], 2.0) is None


def test_what_is_not_a_number_has_not_reached_the_target() -> None:
    assert time_to_target([0.0, 0.25, 0.75], [3.0, 2.5, 1.0], 2.0) == 0.75  # seconds keep their fractions
    assert time_to_target([0, 1, 2], [math.nan, math.inf, 1.0], 2.0) == 2


def test_mean_and_spread() -> None:
    values = [1.5, 2.25, 9.0, -3.0]
    assert mean(values) == pytest.approx(python_statistics.mean(values))
    assert standard_deviation(values) == pytest.approx(python_statistics.stdev(values))
    assert math.isnan(mean([]))
    assert math.isnan(standard_deviation([1.0]))


@pytest.mark.parametrize(
    ("count", "quantile"), [(3, 4.302653), (5, 2.776445), (10, 2.262157)], ids=lambda value: str(value)
)
def test_t_interval_has_the_quantiles_of_the_tables(count: int, quantile: float) -> None:
    values = [float(value**2) for value in range(count)]
    centre, half_width = t_interval(values)
    assert centre == pytest.approx(mean(values))
    assert half_width == pytest.approx(quantile * standard_deviation(values) / count**0.5, rel=1e-6)


def test_t_interval_of_too_few_values_is_unknown() -> None:
    assert t_interval([2.0])[0] == 2.0
    assert math.isnan(t_interval([2.0])[1])
    assert t_interval([1.0, 2.0, 4.0], 0.5)[1] < t_interval([1.0, 2.0, 4.0], 0.99)[1]


@pytest.mark.parametrize("count", [2, 5, 9, 30])
def test_paired_p_value_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(0.5, 1.0, count)
    assert paired_p_value(list(values)) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=1e-9)


def test_paired_p_value_of_what_does_not_vary() -> None:
    assert paired_p_value([0.0, 0.0, 0.0]) == 1.0
    assert paired_p_value([0.5, 0.5, 0.5]) == 1.0  # counted numbers that agree say nothing of their spread
    assert math.isnan(paired_p_value([0.5]))


@pytest.mark.parametrize("count", [1, 4, 9, 12])
def test_sign_flips_are_those_of_scipy(count: int) -> None:
    values = np.random.default_rng(count).normal(0.4, 1.0, count)
    if count == 1:
        assert sign_flip_p_value(list(values)) == 1.0
        return
    expected = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p_value(list(values)) == pytest.approx(expected, abs=1e-12)


def test_sign_flips_of_many_are_drawn_and_never_zero() -> None:
    values = list(np.random.default_rng(0).normal(0.3, 1.0, 40))
    drawn = sign_flip_p_value(values)
    assert drawn == sign_flip_p_value(values)
    assert drawn == pytest.approx(paired_p_value(values), abs=0.03)
    assert 0 < sign_flip_p_value([1.0] * 40) < 1e-4
    assert sign_flip_p_value([1.0] * 5) == 2 / 2**5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    with_unknown = holm([math.nan, 0.02, 0.01])
    assert math.isnan(with_unknown[0])
    assert with_unknown[1:] == pytest.approx([0.02, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_intervals_exclude_zero_exactly_where_holm_rejects(seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = [list(random.normal(shift, 1.0, 8)) for shift in (0.0, 0.6, 1.0, 1.6)]
    for found in differences_of(samples):
        low, high = found.interval
        assert (low > 0 or high < 0) == (found.p_value < 0.05)


def test_one_comparison_is_the_plain_t_interval_and_more_are_wider() -> None:
    sample = [0.1, 0.3, 0.2, 0.5, 0.4]
    centre, half = t_interval(sample)
    (alone,) = differences_of([sample])
    assert alone.interval == pytest.approx((centre - half, centre + half))
    assert alone.sign_flip_p_value is None
    among = differences_of([sample, [1.0, -1.0, 0.5, -0.5, 0.1], [0.3]])
    assert among[0].interval[0] < alone.interval[0]
    assert math.isnan(among[2].p_value)
    assert math.isnan(among[2].interval[0])
    assert differences_of([[float(value) for value in range(1, 10)]])[0].sign_flip_p_value == 2 / 2**9


def of(low: float, high: float, count: int = 5) -> Difference:
    return Difference((low + high) / 2, count, (low, high), 0.01, None)


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (of(-0.3, -0.1), {}, "supported"),
        (of(-0.3, -0.1), {"claimed": "above"}, "refuted"),
        (of(0.1, 0.3), {}, "refuted"),
        (of(0.1, 0.3), {"claimed": "above"}, "supported"),
        (of(-0.3, -0.1, count=4), {}, "inconclusive"),
        (of(-0.3, -0.1), {"complete": False}, "inconclusive"),
        (of(-0.3, -0.1), {"placebos": [of(-0.2, -0.01), of(-0.2, 0.1)]}, "inconclusive"),
        (of(-0.3, -0.1), {"placebos": [of(-0.2, -0.01)]}, "supported"),
        (of(-0.005, 0.004), {}, "no effect"),
        (of(-0.005, -0.002), {"placebos": [of(-0.1, 0.1)]}, "no effect"),
        (of(-0.3, 0.1), {}, "inconclusive"),
        (Difference(0.1, 5, (math.nan, math.nan), math.nan, None), {}, "inconclusive"),
    ],
)
def test_verdicts(found: Difference, options: dict, expected: str) -> None:
    assert verdict(found, indifference=0.01, **options) == expected
