"""Times to a target that some runs never reach: censored means and performance profiles.

A run that does not reach its target is censored at its budget: it would take longer, by an unknown amount. It is never
left out, because that would reward an arm for its failures (protocol, 4). Lower is better for the quantity that is
followed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natattn.statistics.paired import time_to_target

Floats = NDArray[np.float64]
Run = tuple[ArrayLike, ArrayLike, float, float]  # steps, values, target, budget
LARGEST_RATIO = 4.0  # of a performance profile, as in AlgoPerf
_ROUNDING = 1e-12  # ratios that exceed the profile's factor only by rounding count as within it


@dataclass(frozen=True)
class TimesToTarget:
    """One time for each run, in the unit of its steps.

    Attributes:
        times: min(time to target, budget). Their mean is the restricted mean survival time, which is below the mean
            time
            if a run is censored.
        reached: whether the run reached its target within its budget.
    """

    times: tuple[float, ...]
    reached: tuple[bool, ...]

    @property
    def for_profile(self) -> tuple[float, ...]:
        """The times with ∞ for censored runs, as ``performance_profile`` takes them."""
        return tuple(time if reached else math.inf for time, reached in zip(self.times, self.reached, strict=True))


def times_to_target(runs: Iterable[Run]) -> TimesToTarget:
    """Return the first steps at or below the target, censored at the budget.

    A run that diverged or stopped before its budget is also censored there: more steps would not have been earlier. A
    target that is reached after the budget does not count as reached.

    Args:
        runs: steps, values, target and budget of each; a missing run has no steps.

    Raises: ValueError for a budget that is not a positive number.
    """
    times, has_reached = [], []
    for steps, values, target, budget in runs:
        if not 0 < budget < math.inf:
            raise ValueError(f"a budget of {budget}: must be a positive number")
        time = time_to_target(steps, values, target)
        is_within = time is not None and time <= budget
        times.append(float(time) if time is not None and is_within else float(budget))
        has_reached.append(is_within)
    return TimesToTarget(tuple(times), tuple(has_reached))


def performance_profile(times: Mapping[str, Sequence[float]], ratios: ArrayLike) -> dict[str, Floats]:
    """Return ρ_arm(r), the share of workloads on which an arm takes at most r times as long as the best arm.

    ρ_arm(r) = #{w : t_arm,w ≤ r · min_a t_a,w} / #{w} (Dolan and Moré 2002).

    Args:
        times: of every arm on every workload, in one order; ∞ or nan if the target was not reached, which counts for no
            ratio, even if no arm reached it.
        ratios: r.

    Raises: ValueError for arms with different numbers of workloads, no workloads, or negative times.
    """
    limits = (1 + _ROUNDING) * np.asarray(ratios, dtype=np.float64)[:, None]
    return {
        arm: ((to_best <= limits) & np.isfinite(to_best)).mean(1) for arm, to_best in _ratios_to_best(times).items()
    }


def profile_scores(times: Mapping[str, Sequence[float]], largest: float = LARGEST_RATIO) -> dict[str, Floats]:
    """Return what each workload adds to an arm's score: (largest − x)/(largest − 1) at ratio x, and 0 for x > largest.

    Their mean is the mean of ρ_arm(r) over 1 ≤ r ≤ largest, in [0, 1]: AlgoPerf's score (Dahl et al. 2023), without a
    grid. Like the profile, it depends on which arms are compared.

    Raises: as ``performance_profile``, and ValueError for ``largest`` ≤ 1.
    """
    if largest <= 1:
        raise ValueError(f"largest={largest}: must be above 1")
    return {
        arm: np.clip((largest - to_best) / (largest - 1), 0, 1) for arm, to_best in _ratios_to_best(times).items()
    }  # fmt: skip


def _ratios_to_best(times: Mapping[str, Sequence[float]]) -> dict[str, Floats]:
    """Return each arm's times over the best arm's on the same workload; ∞ if it did not reach the target."""
    if len({len(of_arm) for of_arm in times.values()}) > 1:
        raise ValueError("every arm needs a time for every workload; ∞ where it did not reach the target")
    table = np.array([list(of_arm) for of_arm in times.values()], dtype=np.float64)
    if not table.size:
        raise ValueError("no workloads")
    if (table < 0).any():
        raise ValueError("times are not below zero")
    table[np.isnan(table)] = np.inf
    best = table.min(0)
    ratios = np.full_like(table, np.inf)
    arrived = np.isfinite(table)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The best arm has ratio 1 even if its time is 0.
        ratios[arrived] = np.where(table == best, 1.0, table / best)[arrived]
    return dict(zip(times, ratios, strict=True))
