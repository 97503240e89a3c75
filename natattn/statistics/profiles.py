"""Times to a target where some runs never reach it: censored means, performance profiles.

A run that does not reach its target is censored at its budget: all that is known is that it would take longer. It is
never left out, for that would reward an arm for its failures (protocol, 4). Lower is better for what is followed.
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
_ROUNDING = 1e-12  # times whose ratio is a profile's factor but for rounding are within it


@dataclass(frozen=True)
class TimesToTarget:
    """One time for every run, in their order and in the unit of their steps.

    Attributes:
        times: of reaching the target; the budget where the run did not, so that their mean is the restricted mean
            survival time, which is below the mean time if one was censored.
        reached: whether it did.
    """

    times: tuple[float, ...]
    reached: tuple[bool, ...]

    @property
    def for_profile(self) -> tuple[float, ...]:
        """The times with ∞ for those that were censored, as ``performance_profile`` takes them."""
        return tuple(time if reached else math.inf for time, reached in zip(self.times, self.reached, strict=True))


def times_to_target(runs: Iterable[Run]) -> TimesToTarget:
    """First steps at or below the target, censored at the budget.

    A run that diverged or stopped before its budget counts there too: more steps would not have been earlier. What is
    reached behind the budget is not reached.

    Args:
        runs: steps, values, target and budget of each. A missing run is one without steps.

    Raises: ValueError for a budget that is not a positive number.
    """
    times, has_reached = [], []
    for steps, values, target, budget in runs:
        if not 0 < budget < math.inf:
            raise ValueError(f"a budget of {budget}: must be a positive number")
        found = time_to_target(steps, values, target)
        reached = found is not None and found <= budget
        times.append(float(found) if found is not None and reached else float(budget))
        has_reached.append(reached)
    return TimesToTarget(tuple(times), tuple(has_reached))


def performance_profile(times: Mapping[str, Sequence[float]], ratios: ArrayLike) -> dict[str, Floats]:
    """ρ_arm(r): share of workloads whose time is at most r times the best arm's there (Dolan and Moré 2002).

    Args:
        times: of every arm on every workload, in one order; ∞ or nan where the target was not reached, which counts
            for no ratio, also where no arm reached it.
        ratios: r.

    Raises: ValueError for arms with different numbers of workloads, no workloads, or times below zero.
    """
    grid = np.asarray(ratios, dtype=np.float64)
    limits = (1 + _ROUNDING) * grid[:, None]
    shares = {}
    for arm, of_arm in _ratios_to_best(times).items():
        shares[arm] = ((of_arm <= limits) & np.isfinite(of_arm)).mean(1)
    return shares


def profile_scores(times: Mapping[str, Sequence[float]], largest: float = LARGEST_RATIO) -> dict[str, Floats]:
    """What each workload adds to an arm's score: (largest − x)/(largest − 1) at ratio x, 0 beyond the range.

    Their mean is that of ρ_arm(r) over 1 ≤ r ≤ largest, in [0, 1]: AlgoPerf's score (Dahl et al. 2023), exact without a
    grid. Like the profile it depends on which arms are compared.

    Raises: as ``performance_profile``, and ValueError for ``largest`` ≤ 1.
    """
    if largest <= 1:
        raise ValueError(f"largest={largest}: must be above 1")
    return {
        arm: np.clip((largest - of_arm) / (largest - 1), 0, 1) for arm, of_arm in _ratios_to_best(times).items()
    }  # fmt: skip


def _ratios_to_best(times: Mapping[str, Sequence[float]]) -> dict[str, Floats]:
    """By arm, its times over the best of all arms on the same workload; ∞ where it did not arrive."""
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
        # Who needs no time is the best; 0/0 is his own ratio.
        ratios[arrived] = np.where(table == best, 1.0, table / best)[arrived]
    return dict(zip(times, ratios, strict=True))
