"""Schedules as functions of the step."""

import pytest

from natattn.training.schedule import ConstantSettings, CosineSettings, WSDSettings

SCHEDULES = [
    CosineSettings(kind="cosine", warmup_fraction=0.1, final=0.1),
    WSDSettings(kind="wsd", warmup_fraction=0.1, decay_fraction=0.2, final=0.0),
    ConstantSettings(kind="constant", warmup_steps=10),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_warm_up_is_linear_and_ends_at_one(schedule):
    assert [schedule.factor(step, 100) for step in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert schedule.factor(10, 100) == pytest.approx(1.0)


def test_cosine_passes_the_middle_and_ends_at_final():
    schedule = SCHEDULES[0]
    assert schedule.factor(55, 100) == pytest.approx(0.55)
    assert schedule.factor(100, 100) == pytest.approx(0.1)


def test_wsd_is_stable_then_decays_linearly():
    schedule = SCHEDULES[1]
    assert schedule.factor(80, 100) == 1.0
    assert schedule.factor(90, 100) == pytest.approx(0.5)
    assert schedule.factor(100, 100) == pytest.approx(0.0)


def test_constant_does_not_depend_on_the_length():
    assert {SCHEDULES[2].factor(50, steps) for steps in (60, 100, 10_000)} == {1.0}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_no_warm_up_and_one_step(schedule):
    bare = schedule.model_copy(update={"warmup_steps": 0, "warmup_fraction": 0.0})
    assert 0 < bare.factor(0, 1) <= 1


def test_wsd_without_decay_stays_at_one():
    schedule = WSDSettings(kind="wsd", warmup_fraction=0.0, decay_fraction=0.0, final=0.0)
    assert schedule.factor(99, 100) == 1.0
