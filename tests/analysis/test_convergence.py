"""Convergence of curves that are known."""

import pytest

from natattn.analysis.convergence import convergence
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


def test_two_evaluations_have_a_slope_and_early_gradients_do_not_count(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for step, loss, norm in ((0, 5.0, 50.0), (100, 4.0, 2.0)):
            file.log([Record(step, "a", "validation/loss", loss, 0.0)])
            file.log([Record(step, "a", "train/gradient_norm", norm, 0.0)])
    found = convergence(read_metrics(tmp_path / "metrics.jsonl"), "a")
    assert found.slope[0] == pytest.approx(-1.0)  # of 100 steps
    assert (found.gradient_norm, found.largest_gradient_norm) == (2.0, 2.0)
