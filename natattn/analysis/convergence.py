"""Convergence of a run: steps, area and slope of its loss (claim R1)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from natattn.statistics.paired import slope_interval, time_to_target
from natattn.tracking.metrics_file import Metrics

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Convergence:
    """Convergence of one arm; losses are in nats per the run's unit: token, image or pair.

    Attributes:
        area: mean loss over the steps, by the trapezoidal rule.
        slope: of the loss, per hundred steps over the last fifth of the run, and half its 95 % interval.
        steps_to_quarters: first evaluated step at or below ¼, ½ and ¾ of the way from the first to the last loss; None
            if it was not reached.
        gradient_norm: median over the second half; nan if it was not logged.
        largest_gradient_norm: over the second half as well.
    """

    final: float
    area: float
    slope: tuple[float, float]
    steps_to_quarters: tuple[float | None, float | None, float | None]
    gradient_norm: float
    largest_gradient_norm: float


def convergence(metrics: Metrics, arm: str) -> Convergence | None:
    """Return the convergence of an arm's validation losses; None with fewer than two of them."""
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
