"""Quantities that are compared between a candidate and a baseline; a negative difference is better for each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.bands import Floats, metrics_of, series
from natattn.analysis.convergence import convergence
from natattn.analysis.runs import ArmSummary, RunSummary

# A run, its arm, and the run and arm that it is compared with; None where the runs do not know it.
Compared = Callable[[RunSummary, ArmSummary, RunSummary, ArmSummary], float | None]


@dataclass(frozen=True)
class PairedQuantity:
    """One thing to compare; the unit of the difference is empty for the logarithm of a ratio."""

    title: str
    unit: str
    difference: Compared

    def unit_in(self, run_unit: str) -> str:
        """The unit in runs whose losses are means over tokens, images or pairs."""
        return self.unit.replace("token", run_unit)


def _final_loss(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    if arm.final_loss is None or other.final_loss is None:
        return None
    return arm.final_loss - other.final_loss


def _test_loss(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    if arm.test_loss is None or other.test_loss is None:
        return None
    return arm.test_loss - other.test_loss


def _test_error(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    """Share of test images that are classified wrongly; of pairs that are not found first, mean over both ways."""
    errors = [_error(each) for each in (arm, other)]
    return None if errors[0] is None or errors[1] is None else errors[0] - errors[1]


def _error(arm: ArmSummary) -> float | None:
    for names in (("accuracy",), ("image_to_text_recall_1", "text_to_image_recall_1")):
        found = [arm.metrics.get(f"test/{name}") for name in names]
        known = [value for value in found if value is not None]
        if len(known) == len(names):
            return 1 - sum(known) / len(known)
    return None


def _area(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    mine, theirs = convergence(metrics_of(run), arm.name), convergence(metrics_of(other_run), other.name)
    return None if mine is None or theirs is None else mine.area - theirs.area


def _steps_to_target(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    """log of the ratio of steps to the worse of both final losses, which both have reached by the end.

    Where the candidate is better that is the baseline's final loss (protocol, 3); where it is worse, what it did reach
    and the baseline reached sooner. So the two can change places, and 0 is what arms that are alike have on average.
    Between evaluations the loss is taken to be linear.
    """
    if arm.final_loss is None or other.final_loss is None:
        return None
    target = max(arm.final_loss, other.final_loss)
    times = [_crossing(*series(of, which, "validation/loss"), target) for of, which in ((run, arm), (other_run, other))]
    return math.log(times[0] / times[1]) if times[0] and times[1] else None


def _crossing(steps: NDArray[np.int64], losses: Floats, target: float) -> float | None:
    """The step at which the loss first falls to the target, interpolated."""
    at = np.flatnonzero(losses <= target)
    if not at.size:
        return None
    after = int(at[0])
    if after == 0:
        return float(steps[0])
    share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    return float(steps[after - 1] + share * (steps[after] - steps[after - 1]))


def _stability(run: RunSummary, arm: ArmSummary, other_run: RunSummary, other: ArmSummary) -> float | None:
    """log of the ratio of mean pattern divergences over the second half of the run."""
    mine, theirs = late_divergence(run, arm), late_divergence(other_run, other)
    return None if not mine or not theirs else math.log(mine / theirs)


def late_divergence(run: RunSummary, arm: ArmSummary) -> float | None:
    """Mean Jensen–Shannon divergence of patterns between evaluations in the second half of the run, nats."""
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
    "test_error": PairedQuantity("test error", "share", _test_error),
    "mean_loss": PairedQuantity("mean loss over steps", "nats/token", _area),
    "steps_to_target": PairedQuantity("steps to the worse of both final losses, log ratio", "", _steps_to_target),
    "pattern_divergence": PairedQuantity("pattern divergence in the second half, log ratio", "", _stability),
    "step_time": PairedQuantity("step time, log ratio", "", _step_time),
}
