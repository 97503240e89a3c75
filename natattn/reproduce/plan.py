"""What a study still has to run: tuning on seeds of its own, then the table's seeds at the values that won.

Every tuned arm gets the same grid (protocol, 2). Where the winner is at the edge, the grid of that arm and corpus is
widened by one value, in the ratio that its last two have, as often as the study allows; a winner that is still at the
edge is marked, and shown as such.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from natattn.reproduce.settings import StudySettings, TuningSettings
from natattn.reproduce.studies import Arm, Trial, arms_of
from natattn.statistics.paired import mean

# The last validation loss of a trial; infinite if it diverged, None if it has not been run.
Score = Callable[[Trial], float | None]


@dataclass(frozen=True)
class TuningResult:
    """What tuning found for one arm on one corpus.

    Attributes:
        losses: {value of the grid: mean last loss over the tuning seeds}; infinite where one of them diverged.
        best: the value with the least; None until the grid is complete, or where every value diverged.
        at_edge: whether it is the smallest or largest that was tried.
    """

    losses: dict[float, float]
    best: float | None
    at_edge: bool


@dataclass(frozen=True)
class Plan:
    """Trials that are wanted by what is known so far, and what tuning found.

    Attributes:
        trials: all of them, done or not; those of the table only where tuning is complete.
        tuned: by (corpus, arm).
    """

    trials: tuple[Trial, ...]
    tuned: dict[tuple[str, str], TuningResult]


def plan(study: StudySettings, score: Score) -> Plan:
    """The trials that the study wants now; ask again when they are done, for tuning decides what follows."""
    arms = arms_of(study)
    trials: list[Trial] = []
    tuned: dict[tuple[str, str], TuningResult] = {}
    for corpus in study.corpora:
        for arm in arms.values():
            if arm.tuned_as != arm.name or study.tuning is None or corpus not in arm.corpora:
                continue
            tried, found = _tuned(study.tuning, corpus, arm, score)
            trials += tried
            tuned[corpus, arm.name] = found
    for corpus in study.corpora:
        for arm in arms.values():
            if corpus not in arm.corpora:
                continue
            best = tuned[corpus, arm.tuned_as].best if arm.tuned_as is not None else None
            if arm.tuned_as is None or best is not None:
                trials += [Trial(corpus, arm.name, best, seed) for seed in arm.seeds]
    return Plan(tuple(dict.fromkeys(trials)), tuned)


def final_trial(plan: Plan, arm: Arm, corpus: str, seed: int) -> Trial | None:
    """The trial of the table for an arm and a seed; None where it has none, or tuning has not said at which value."""
    if corpus not in arm.corpora or seed not in arm.seeds:
        return None
    if arm.tuned_as is None:
        return Trial(corpus, arm.name, None, seed)
    found = plan.tuned.get((corpus, arm.tuned_as))
    return None if found is None or found.best is None else Trial(corpus, arm.name, found.best, seed)


def _tuned(tuning: TuningSettings, corpus: str, arm: Arm, score: Score) -> tuple[list[Trial], TuningResult]:
    """The trials that tuning has wanted so far, and what came of them."""
    grid = list(tuning.grid)
    for widened in range(tuning.widenings + 1):
        losses = {rate: _mean_score([Trial(corpus, arm.name, rate, s) for s in tuning.seeds], score) for rate in grid}
        known = {rate: loss for rate, loss in losses.items() if loss is not None}
        if len(known) < len(grid):
            return _trials(tuning, corpus, arm, grid), TuningResult(known, None, False)
        best = min(known, key=known.__getitem__)
        found = TuningResult(known, best if math.isfinite(known[best]) else None, best in (grid[0], grid[-1]))
        if not found.at_edge or found.best is None or len(grid) < 2 or widened == tuning.widenings:
            break
        grid = sorted([*grid, _beyond(grid, best)])
    return _trials(tuning, corpus, arm, grid), found


def _trials(tuning: TuningSettings, corpus: str, arm: Arm, grid: Sequence[float]) -> list[Trial]:
    return [Trial(corpus, arm.name, rate, seed) for rate in grid for seed in tuning.seeds]


def _mean_score(trials: Sequence[Trial], score: Score) -> float | None:
    scores = [score(trial) for trial in trials]
    known = [each for each in scores if each is not None]
    if len(known) < len(scores):
        return None
    return math.inf if math.inf in known else mean(known)


def _beyond(grid: Sequence[float], edge: float) -> float:
    """The next value past an end, to two digits, as far from it as the grid's neighbour is."""
    neighbour = grid[1] if edge == grid[0] else grid[-2]
    return float(f"{edge * edge / neighbour:.1e}")
