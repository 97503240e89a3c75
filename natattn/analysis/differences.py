"""What is compared between two arms of a pair of runs, candidate and baseline: below zero is better for each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from natattn.analysis.bands import metrics_of, series
from natattn.analysis.convergence import convergence
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.statistics import time_to_target

# A run, its arm, and the run and arm that it is compared with; None where the runs do not know it.
Compared = Callable[[RunSummary, ArmSummary, RunSummary, ArmSummary], float | None]


@dataclass(frozen=True)
class PairedQuantity:
    """One thing to compare; the unit of the difference is empty for the logarithm of a ratio."""

    title: str
    unit: str
    difference: Compared


def _final_loss(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    if arm.final_loss is None or other.final_loss is None:
        return None
    return arm.final_loss - other.final_loss


def _test_loss(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    if arm.test_loss is None or other.test_loss is None:
        return None
    return arm.test_loss - other.test_loss


def _area(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    mine, theirs = convergence(metrics_of(run), arm.name), convergence(metrics_of(other_run), other.name)
    return None if mine is None or theirs is None else mine.area - theirs.area


def _steps_to_target(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    """log(steps to the other's final loss / the other's steps): of a ratio, and symmetric about 0.

    An arm that never reaches it counts as reaching it at the end of its run, a lower bound: left out, it would gain by
    its failure.
    """
    if other.final_loss is None or not other.last_step:
        return None
    steps, losses = series(run, arm, "validation/loss")
    reached = time_to_target(steps, losses, other.final_loss)
    if reached is None:
        reached = run.planned_steps or arm.last_step
    return math.log(reached / other.last_step) if reached else None


def _stability(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    """log of the ratio of mean pattern divergences over the second half of the run."""
    mine, theirs = _late_divergence(run, arm), _late_divergence(other_run, other)
    return None if not mine or not theirs else math.log(mine / theirs)


def _late_divergence(run: RunSummary, arm: ArmSummary) -> float | None:
    steps, values = series(run, arm, "attention/layer_*/pattern_divergence")
    return float(values[steps >= steps[-1] / 2].mean()) if len(steps) else None


def _step_time(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    """log of the ratio of step times, of arms of one run only: others did not share their machine's moments."""
    if run is not other_run or not arm.step_seconds or not other.step_seconds:
        return None
    return math.log(arm.step_seconds / other.step_seconds)


PAIRED_QUANTITIES: Mapping[str, PairedQuantity] = {
    "final_loss": PairedQuantity("final loss", "nats/token", _final_loss),
    "test_loss": PairedQuantity("test loss", "nats/token", _test_loss),
    "mean_loss": PairedQuantity("mean loss over steps", "nats/token", _area),
    "steps_to_target": PairedQuantity("steps to the baseline's final loss, log ratio", "", _steps_to_target),
    "pattern_divergence": PairedQuantity("pattern divergence in the second half, log ratio", "", _stability),
    "step_time": PairedQuantity("step time, log ratio", "", _step_time),
}
