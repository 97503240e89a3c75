"""Temperature schedules as functions of the step, and their settings."""

import pytest
from pydantic import ValidationError

from natattn.attention.critical_exponents import critical_temperatures
from natattn.attention.types.tempered import TemperedAttention


def schedule_of(settings):
    return TemperedAttention(kind="tempered", temperature=settings).temperature


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "inverse_sqrt", "initial": 3.0, "floor": 0.5}, {0: 3.0, 3: 1.5, 8: 1.0, 1000: 0.5}),
        ({"kind": "linear", "initial": 2.0, "final": 1.0}, {0: 2.0, 50: 1.5, 100: 1.0, 500: 1.0}),
        ({"kind": "cosine", "initial": 2.0, "final": 1.0}, {0: 2.0, 25: 1.85355339, 50: 1.5, 100: 1.0, 500: 1.0}),
    ],
)
def test_values_of_each_schedule(settings, expected):
    schedule = schedule_of(settings)
    for step, value in expected.items():
        assert schedule.at(step, 101) == pytest.approx(value)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "constant", "value": 0.0},
        {"kind": "per_head", "values": ()},
        {"kind": "per_head", "values": (1.0, -1.0)},
        {"kind": "linear", "initial": 1.0},
        {"kind": "quadratic", "initial": 1.0, "final": 2.0},
        {"kind": "inverse_sqrt", "initial": 1.0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        schedule_of(settings)


@pytest.mark.parametrize(
    ("exponents", "width", "temperature", "expected"),
    [
        (0.5, 768, 1.0, [1.0, 1.0]),
        (0.5, 192, 1.0, [2.0, 2.0]),
        ((0.5, -0.5), 192, 3.0, [6.0, 1.5]),
        ((1.0,), 1536, 1.0, [0.5, 0.5]),
    ],
)
def test_critical_temperatures_of_heads(exponents, width, temperature, expected):
    assert critical_temperatures(exponents, width, 2, temperature).tolist() == pytest.approx(expected)


def test_critical_temperatures_need_an_exponent_for_each_head():
    with pytest.raises(ValueError, match="3 exponents for 2 heads"):
        critical_temperatures((1.0, 1.0, 1.0), 64, 2)
