"""Convergence of curves that are known."""

import math

import numpy as np
import pytest

from natattn.analysis.convergence import convergence, lead_of_peak, mean_lead
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile, read_metrics


@pytest.fixture
def metrics(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step in range(0, 1001, 50):
            file.log([Record(step, "a", "validation/loss", 5.0 - 0.002 * step, 0.0)])
            file.log([Record(step, "a", "train/gradient_norm", 2.0 if step != 800 else 10.0, 0.0)])
            file.log([Record(step, "still", "validation/loss", 5.0, 0.0)])
        file.log([Record(0, "b", "validation/loss", 5.0, 0.0)])
    return read_metrics(tmp_path / "metrics.jsonl")


def test_a_straight_line(metrics):
    found = convergence(metrics, "a")
    assert found.final == pytest.approx(3.0)
    assert found.area == pytest.approx(4.0)
    assert found.slope[0] == pytest.approx(-0.2)
    assert found.slope[1] == pytest.approx(0.0, abs=1e-9)
    assert found.steps_to_quarters == (250, 500, 750)
    assert (found.gradient_norm, found.largest_gradient_norm) == (2.0, 10.0)
    assert convergence(metrics, "b") is None
    assert convergence(metrics, "c") is None


def test_a_loss_that_does_not_move_is_at_its_quarters_from_the_start(metrics):
    assert convergence(metrics, "still").steps_to_quarters == (0, 0, 0)


def curves(peak, fall):
    steps = np.unique(np.geomspace(1, 1000, 60).round())
    logs = np.log(steps)
    return steps, np.exp(-((logs - np.log(peak)) ** 2)), 5 - 3 / (1 + np.exp(-4 * (logs - np.log(fall))))


@pytest.mark.parametrize(("peak", "fall"), [(30, 120), (120, 30), (60, 60)])
def test_the_lead_of_a_peak(peak, fall):
    steps, quantity, losses = curves(peak, fall)
    found = lead_of_peak(np.append(0, steps), np.append(9.0, quantity), np.append(9.0, losses))
    assert found.is_inside
    assert found.lead == pytest.approx(math.log(fall / peak), abs=0.2)  # the spacing of the grid


def test_a_quantity_that_only_grows_has_no_peak():
    steps, _, losses = curves(30, 60)
    found = lead_of_peak(steps, steps, losses)
    assert not found.is_inside
    assert lead_of_peak([1, 2, 3], [1, 2, 1], [3, 2, 1]) is None
    centre, half, count = mean_lead([found, None])
    assert math.isnan(centre)
    assert math.isnan(half)
    assert count == 0


def test_leads_are_averaged_over_seeds():
    leads = [lead_of_peak(*curves(peak, 120)) for peak in (28, 30, 32)]
    centre, half, count = mean_lead(leads)
    assert count == 3
    assert centre - half < math.log(4) < centre + half


def test_two_evaluations_have_a_slope_and_early_gradients_do_not_count(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step, loss, norm in ((0, 5.0, 50.0), (100, 4.0, 2.0)):
            file.log([Record(step, "a", "validation/loss", loss, 0.0)])
            file.log([Record(step, "a", "train/gradient_norm", norm, 0.0)])
    found = convergence(read_metrics(tmp_path / "metrics.jsonl"), "a")
    assert found.slope[0] == pytest.approx(-1.0)  # of 100 steps
    assert (found.gradient_norm, found.largest_gradient_norm) == (2.0, 2.0)
