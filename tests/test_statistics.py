import math
import statistics as python_statistics

import numpy as np
import pytest

from natattn.statistics import mean, standard_deviation, time_to_target


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
