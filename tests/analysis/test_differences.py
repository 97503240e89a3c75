"""What is compared between two arms: signs, symmetry, and what is not known."""

import math

import pytest

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.analysis.runs import summarise_run


@pytest.fixture
def pair(make_run):
    """A run whose candidate is better by an advantage: (run, candidate, run, reference)."""

    def make(advantage: float, **changed):
        run = summarise_run(make_run(f"run_{advantage}_{len(changed)}", advantage=advantage, **changed))
        return run, run.arm("natural"), run, run.arm("standard")

    return make


@pytest.mark.parametrize("name", ["final_loss", "mean_loss", "steps_to_target", "step_time"])
def test_a_difference_changes_its_sign_when_the_arms_change_places(name, pair):
    run, candidate, _, reference = pair(0.05)
    difference = PAIRED_QUANTITIES[name].difference
    forth, back = difference(run, candidate, run, reference), difference(run, reference, run, candidate)
    assert forth is not None
    assert back is not None
    assert forth == pytest.approx(-back)
    assert forth != 0


@pytest.mark.parametrize(("advantage", "sign"), [(0.3, -1), (-0.3, 1)])
def test_a_worse_arm_is_slower_and_a_better_one_faster(advantage, sign, pair):
    found = PAIRED_QUANTITIES["steps_to_target"].difference(*pair(advantage))
    assert found is not None
    assert sign * found > 0


def test_the_time_to_the_worse_final_loss_is_interpolated(pair):
    run, candidate, _, reference = pair(0.3)
    found = PAIRED_QUANTITIES["steps_to_target"].difference(run, candidate, run, reference)
    assert found is not None
    reached = math.exp(found) * reference.last_step
    assert reached < reference.last_step
    assert reached % 50 != 0  # evaluations are 50 steps apart


@pytest.mark.parametrize("name", ["final_loss", "steps_to_target"])
def test_of_a_diverged_arm_nothing_is_known(name, pair):
    assert PAIRED_QUANTITIES[name].difference(*pair(0.05, diverged_at=300)) is None


@pytest.mark.parametrize("task", ["vision", "multimodal"])
@pytest.mark.parametrize(("advantage", "sign"), [(0.3, -1), (-0.3, 1)])
def test_the_better_arm_has_less_test_error(task, advantage, sign, pair):
    quantity = PAIRED_QUANTITIES["test_error"]
    found = quantity.difference(*pair(advantage, task=task))
    assert found == pytest.approx(-0.1 * advantage)
    assert sign * found > 0


def test_error_is_of_runs_that_classify_or_search_and_did_not_diverge(pair):
    assert PAIRED_QUANTITIES["test_error"].difference(*pair(0.05)) is None
    assert PAIRED_QUANTITIES["test_error"].difference(*pair(0.05, task="vision", diverged_at=300)) is None


@pytest.mark.parametrize(("name", "unit"), [("final_loss", "nats/image"), ("test_error", "share"), ("step_time", "")])
def test_units_of_differences_are_those_of_the_runs(name, unit):
    assert PAIRED_QUANTITIES[name].unit_in("image") == unit


def test_a_target_that_was_met_before_the_first_step_has_no_time(pair):
    """An arm that ends above where both began."""
    assert PAIRED_QUANTITIES["steps_to_target"].difference(*pair(-5.0)) is None


def test_the_better_arm_has_less_test_loss(pair):
    found = PAIRED_QUANTITIES["test_loss"].difference(*pair(0.3, task="vision"))
    assert found == pytest.approx(-0.28 * 0.3)
    assert PAIRED_QUANTITIES["test_loss"].difference(*pair(0.05)) is None
