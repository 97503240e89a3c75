"""How a run converged: steps, area, slope; and whether attention changed before the loss fell (claims R1, K4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid

from natattn.statistics.paired import slope_interval, t_interval, time_to_target
from natattn.tracking.metrics_file import Metrics

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Convergence:
    """Of one arm; losses in nats per the run's unit: token, image or pair.

    Attributes:
        area: mean loss over the steps, by trapezoids: what was lost on the way, whatever the end.
        slope: of the loss, per hundred steps over the last fifth of the run, and half its 95 % interval.
        steps_to_quarters: first evaluated step at or below ¼, ½ and ¾ of the way from the first to the last loss; None
            where it was not reached.
        gradient_norm: median over the second half; nan where it was not logged.
        largest_gradient_norm: over the second half too.
    """

    final: float
    area: float
    slope: tuple[float, float]
    steps_to_quarters: tuple[float | None, float | None, float | None]
    gradient_norm: float
    largest_gradient_norm: float


def convergence(metrics: Metrics, arm: str) -> Convergence | None:
    """Of the validation losses of an arm; None with fewer than two of them."""
    steps, losses, _ = metrics.select(arm=arm, name="validation/loss")
    if len(steps) < 2:
        return None
    fall = losses[-1] - losses[0]
    first, half_way, last = (time_to_target(steps, losses, losses[0] + part * fall) for part in (0.25, 0.5, 0.75))
    late = steps >= steps[0] + 0.8 * (steps[-1] - steps[0])
    late[-2:] = True
    slope, half = slope_interval(steps[late] / 100, losses[late])
    gradient_steps, norms, _ = metrics.select(arm=arm, name="train/gradient_norm")
    norms = norms[gradient_steps >= steps[-1] / 2]
    norms = norms[np.isfinite(norms)]
    return Convergence(
        final=float(losses[-1]),
        area=float(trapezoid(losses, steps) / (steps[-1] - steps[0])),
        slope=(slope, half),
        steps_to_quarters=(first, half_way, last),
        gradient_norm=float(np.median(norms)) if len(norms) else math.nan,
        largest_gradient_norm=float(norms.max()) if len(norms) else math.nan,
    )


@dataclass(frozen=True)
class Lead:
    """Where a quantity peaked in training and where the loss fell the fastest, in steps.

    ``lead`` > 0: the peak came first. Both are places on the grid of evaluations, so that a lead below its ``spacing``
    there (of the logarithm) says nothing; ``is_inside`` is false where the peak is at the first or last evaluation,
    which is no peak.
    """

    peak_step: float
    fall_step: float
    is_inside: bool
    spacing: float

    @property
    def lead(self) -> float:
        """log(step of the fastest fall) − log(step of the peak)."""
        return math.log(self.fall_step) - math.log(self.peak_step)


def lead_of_peak(steps: ArrayLike, quantity: ArrayLike, losses: ArrayLike) -> Lead | None:
    """When a quantity (the heat capacity) peaks, against when the loss falls the fastest per log step (claim K4).

    Step 0 is left out, as it has no logarithm.

    Returns: None with fewer than four evaluations after it.
    """
    grid, curve, loss = (np.asarray(values, dtype=np.float64) for values in (steps, quantity, losses))
    kept = (grid > 0) & np.isfinite(curve) & np.isfinite(loss)
    grid, curve, loss = grid[kept], curve[kept], loss[kept]
    if len(grid) < 4:
        return None
    logs = np.log(grid)
    slopes = np.diff(loss) / np.diff(logs)
    steepest = int(slopes.argmin())
    top = int(curve.argmax())
    middle = math.exp((logs[steepest] + logs[steepest + 1]) / 2)
    return Lead(float(grid[top]), middle, 0 < top < len(grid) - 1, float(logs[steepest + 1] - logs[steepest]))


def mean_lead(leads: Sequence[Lead | None]) -> tuple[float, float, int]:
    """Mean lead over seeds and half its 95 % interval, of the runs that have a peak; and how many have."""
    known = [lead.lead for lead in leads if lead is not None and lead.is_inside]
    return *t_interval(known), len(known)
