"""The trials that a study needs now: tuning on seeds of its own, then the seeds of the table at the values that won.

Every tuned arm gets the same grid (protocol, 2). If the best value is at the edge, the grid of that arm and corpus gets
one more value beyond it, in the ratio of the last two, as often as the study allows. A best value that is still at the
edge is marked as such.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.reproduce.jobs import DoneRuns, Job, JobMaker
from natattn.reproduce.study import Arm, Metric, StudySettings, Trial, TuningSettings, arms_of, overrides_of
from natattn.statistics.paired import mean

# The last validation loss of a trial; infinite if it diverged, None if it has not been run.
Score = Callable[[Trial], float | None]


@dataclass(frozen=True)
class TuningResult:
    """Result of tuning one arm on one corpus.

    Attributes:
        losses: {value of the grid: mean last loss over the tuning seeds}; infinite if one of the runs diverged.
        best: the value with the smallest loss; None until the grid is complete, or if every value diverged.
        at_edge: whether it is the smallest or largest value that was tried.
    """

    losses: dict[float, float]
    best: float | None
    at_edge: bool


@dataclass(frozen=True)
class Plan:
    """Trials that the study needs, given the runs that are finished.

    Attributes:
        trials: all of them, finished or not; an arm's trials for the table appear when its tuning is complete.
        tuned: tuning results by (corpus, arm).
    """

    trials: tuple[Trial, ...]
    tuned: dict[tuple[str, str], TuningResult]


def plan(study: StudySettings, score: Score) -> Plan:
    """Return the trials that the study needs now. Call again when they are finished: tuning decides what follows."""
    arms = [(corpus, arm) for corpus in study.corpora for arm in arms_of(study).values() if corpus in arm.corpora]
    trials: list[Trial] = []
    tuned: dict[tuple[str, str], TuningResult] = {}
    for corpus, arm in arms:
        if study.tuning is not None and arm.tuned_as == arm.name:
            tried, tuned[corpus, arm.name] = _tune(study.tuning, corpus, arm.name, score)
            trials += tried
    for corpus, arm in arms:
        best = None if arm.tuned_as is None else tuned[corpus, arm.tuned_as].best
        if arm.tuned_as is None or best is not None:
            trials += [Trial(corpus, arm.name, best, seed) for seed in arm.seeds]
    return Plan(tuple(dict.fromkeys(trials)), tuned)


def final_trial(plan: Plan, arm: Arm, corpus: str, seed: int) -> Trial | None:
    """Return the trial of the table for an arm and a seed; None if it has none, or tuning is incomplete."""
    if corpus not in arm.corpora or seed not in arm.seeds:
        return None
    if arm.tuned_as is None:
        return Trial(corpus, arm.name, None, seed)
    result = plan.tuned.get((corpus, arm.tuned_as))
    return None if result is None or result.best is None else Trial(corpus, arm.name, result.best, seed)


def _tune(tuning: TuningSettings, corpus: str, arm: str, score: Score) -> tuple[list[Trial], TuningResult]:
    """Return the trials that tuning needs so far, and their result."""
    grid = list(tuning.grid)
    for widened in range(tuning.widenings + 1):
        trials = [Trial(corpus, arm, rate, seed) for rate in grid for seed in tuning.seeds]
        losses = {}
        for rate in grid:
            scores = [score(trial) for trial in trials if trial.rate == rate]
            known = [loss for loss in scores if loss is not None]
            if len(known) == len(scores):
                losses[rate] = math.inf if math.inf in known else mean(known)
        if len(losses) < len(grid):
            return trials, TuningResult(losses, None, False)
        best = min(losses, key=losses.__getitem__)
        result = TuningResult(losses, best if math.isfinite(losses[best]) else None, best in (grid[0], grid[-1]))
        if not result.at_edge or result.best is None or len(grid) < 2 or widened == tuning.widenings:
            break
        # The next value beyond the edge, to two digits, as far from it as its neighbour.
        neighbour = grid[1] if best == grid[0] else grid[-2]
        grid = sorted([*grid, float(f"{best * best / neighbour:.1e}")])
    return trials, result


class Trials:
    """A study's trials and the finished runs that belong to them.

    Args:
        study: at its budget.
        maker: composes jobs.
        done: the finished runs.
    """

    def __init__(self, study: StudySettings, maker: JobMaker, done: DoneRuns) -> None:
        self.study, self._maker, self._done = study, maker, done
        self.arms = arms_of(study)
        self._jobs: dict[Trial, Job | str] = {}
        self.with_model: set[str] = set()  # arms whose trained weights are needed

    def job(self, trial: Trial) -> Job | str:
        """Return the trial's job; only its key if its text was not given."""
        if trial not in self._jobs:
            overrides = overrides_of(self.study, self.arms[trial.arm], trial)
            self._jobs[trial] = self._maker.job(self.study.corpora[trial.corpus], overrides)
        return self._jobs[trial]

    def key(self, trial: Trial) -> str:
        """Return the key of the trial's job."""
        job = self.job(trial)
        return job if isinstance(job, str) else job.key

    def plan(self) -> Plan:
        """Return what the study needs, given the runs that are finished now."""
        return plan(self.study, self.score)

    def run(self, trial: Trial) -> RunSummary | None:
        """Return the trial's finished run, if it has everything that the study needs of it."""
        is_final = trial.seed in self.arms[trial.arm].seeds
        return self._done.find(
            self.key(trial),
            self.study.metrics if is_final else (),
            with_model=is_final and trial.arm in self.with_model,
        )

    def _member(self, trial: Trial | None) -> tuple[RunSummary, ArmSummary] | None:
        run = None if trial is None else self.run(trial)
        if trial is None or run is None:
            return None
        arm = run.arm(self.arms[trial.arm].of_run or run.candidate)
        return None if arm is None else (run, arm)

    def score(self, trial: Trial) -> float | None:
        """Return the last validation loss; infinite for an arm that diverged, None if there is no run."""
        if (member := self._member(trial)) is None:
            return None
        loss = member[1].final_loss
        return math.inf if loss is None else loss

    def finals(self, plan: Plan, corpus: str, arm: str) -> list[tuple[RunSummary, ArmSummary]]:
        """Return an arm's finished runs of the table, by seed."""
        trials = (final_trial(plan, self.arms[arm], corpus, seed) for seed in self.arms[arm].seeds)
        return [member for trial in trials if (member := self._member(trial)) is not None]

    def measure(self, plan: Plan, metric: Metric, corpus: str, arm: str, other: str, seed: int) -> float | None:
        """Return a metric's difference between two arms with equal seed, data and initial weights (protocol, 1).

        None if a run is missing, an arm diverged, or the runs are not paired.
        """
        members = [self._member(final_trial(plan, self.arms[name], corpus, seed)) for name in (arm, other)]
        pair = [member for member in members if member is not None and member[1].diverged_at is None]
        if len(pair) < 2:
            return None
        (run, mine), (other_run, theirs) = pair
        if run is not other_run and _pairing(run) != _pairing(other_run):
            return None
        return PAIRED_QUANTITIES[metric].difference(run, mine, other_run, theirs)

    def is_among(self, trial: Trial, arms: Collection[str], corpora: Collection[str]) -> bool:
        """Return whether the trial has one of these arms and corpora; an empty collection means any."""
        return (not arms or self.arms[trial.arm].family in arms) and (not corpora or trial.corpus in corpora)

    def label(self, trial: Trial) -> str:
        """Return the trial in words."""
        rate = "" if trial.rate is None else f", {trial.rate:g}"
        return f"{self.study.name}: {trial.arm} on {trial.corpus}{rate}, seed {trial.seed}"

    def tuning_folders(self, plan: Plan, corpus: str, arm: str) -> tuple[Path, ...]:
        """Return the folders of the runs that tuned an arm."""
        seeds = () if self.study.tuning is None else self.study.tuning.seeds
        tuning = [t for t in plan.trials if (t.corpus, t.arm) == (corpus, arm) and t.seed in seeds]
        return tuple(dict.fromkeys(run.folder for trial in tuning if (run := self.run(trial)) is not None))

    def folders(self, plan: Plan, corpus: str, *arms: str) -> tuple[Path, ...]:
        """Return the folders of the table's runs of some arms."""
        return tuple(dict.fromkeys(run.folder for arm in arms for run, _ in self.finals(plan, corpus, arm)))


def _pairing(run: RunSummary) -> tuple[object, ...]:
    return run.data.fingerprint if run.data else None, run.initial_weights_hash, run.device.partition(":")[0]
