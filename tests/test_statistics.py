import math
import statistics as python_statistics

import numpy as np
import pytest

from natattn.statistics import mean, standard_deviation, t_interval, time_to_target


def test_time_to_target_is_the_first_step_at_or_below_it() -> None:
    steps, values = np.array([0, 10, 20, 30]), np.array([5.0, 4.0, 4.5, 3.0])
    assert time_to_target(steps, values, 4.0) == 10
    assert time_to_target(steps, values, 3.99) == 30
    assert time_to_target(steps, values, 2.0) is None
    assert time_to_target([], [], 2.0) is None


def test_what_is_not_a_number_has_not_reached_the_target() -> None:
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
