"""A study's trials and the runs that they became."""

import math
from collections.abc import Collection
from pathlib import Path

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.reproduce.done import DoneRuns
from natattn.reproduce.jobs import Job, JobMaker
from natattn.reproduce.plan import Plan, final_trial, plan
from natattn.reproduce.settings import Metric, StudySettings
from natattn.reproduce.studies import Trial, arms_of, overrides_of


class Trials:
    """What is known of a study's trials.

    Args:
        study: at its budget.
        maker: of jobs.
        done: the runs that count as done.
    """

    def __init__(self, study: StudySettings, maker: JobMaker, done: DoneRuns) -> None:
        self.study, self._maker, self._done = study, maker, done
        self.arms = arms_of(study)
        self._jobs: dict[Trial, Job | str] = {}
        self.with_model: set[str] = set()  # arms whose trained weights are wanted

    def job(self, trial: Trial) -> Job | str:
        """The trial's job; only its key where its text was not given."""
        if trial not in self._jobs:
            overrides = overrides_of(self.study, self.arms[trial.arm], trial)
            self._jobs[trial] = self._maker.job(self.study.corpora[trial.corpus], overrides)
        return self._jobs[trial]

    def key(self, trial: Trial) -> str:
        """Of the trial's job."""
        job = self.job(trial)
        return job if isinstance(job, str) else job.key

    def plan(self) -> Plan:
        """What the study wants, by the runs that are done now."""
        return plan(self.study, self.score)

    def run(self, trial: Trial) -> RunSummary | None:
        """The trial's finished run with all that the study needs of it."""
        is_final = trial.seed in self.arms[trial.arm].seeds
        return self._done.find(
            self.key(trial),
            self.study.metrics if is_final else (),
            with_model=is_final and trial.arm in self.with_model,
        )

    def arm_of(self, trial: Trial, run: RunSummary) -> ArmSummary | None:
        """The trial's arm inside its run."""
        return run.arm(self.arms[trial.arm].of_run or run.candidate)

    def score(self, trial: Trial) -> float | None:
        """The last validation loss; infinite for an arm that diverged, None where there is no run."""
        run = self.run(trial)
        if run is None or (arm := self.arm_of(trial, run)) is None:
            return None
        return math.inf if arm.final_loss is None else arm.final_loss

    def finals(self, plan: Plan, corpus: str, arm: str) -> list[tuple[RunSummary, ArmSummary]]:
        """The runs of the table that are there, of one arm, by seed."""
        found = []
        for seed in self.arms[arm].seeds:
            trial = final_trial(plan, self.arms[arm], corpus, seed)
            run = self.run(trial) if trial is not None else None
            if run is not None and trial is not None and (summary := self.arm_of(trial, run)) is not None:
                found.append((run, summary))
        return found

    def measure(self, plan: Plan, metric: Metric, corpus: str, arm: str, other: str, seed: int) -> float | None:
        """A metric's difference between two arms with the same seed, data and initial weights (protocol, 1).

        None where a run is missing, an arm diverged, or they are no pair.
        """
        pair = []
        for name in (arm, other):
            trial = final_trial(plan, self.arms[name], corpus, seed)
            run = self.run(trial) if trial is not None else None
            summary = self.arm_of(trial, run) if run is not None and trial is not None else None
            if run is None or summary is None or summary.diverged_at is not None:
                return None
            pair.append((run, summary))
        (run, mine), (other_run, theirs) = pair
        if run is not other_run and _began_with(run) != _began_with(other_run):
            return None
        return PAIRED_QUANTITIES[metric].difference(run, mine, other_run, theirs)

    def is_among(self, trial: Trial, arms: Collection[str], corpora: Collection[str]) -> bool:
        """Whether the trial is of one of these arms and corpora; where none is named, of any."""
        return (not arms or self.arms[trial.arm].family in arms) and (not corpora or trial.corpus in corpora)

    def label(self, trial: Trial) -> str:
        """The trial in words."""
        rate = "" if trial.rate is None else f", {trial.rate:g}"
        return f"{self.study.name}: {trial.arm} on {trial.corpus}{rate}, seed {trial.seed}"

    def tuning_folders(self, plan: Plan, corpus: str, arm: str) -> tuple[Path, ...]:
        """Of the runs that tuned an arm."""
        seeds = () if self.study.tuning is None else self.study.tuning.seeds
        tuning = [t for t in plan.trials if (t.corpus, t.arm) == (corpus, arm) and t.seed in seeds]
        return tuple(dict.fromkeys(run.folder for trial in tuning if (run := self.run(trial)) is not None))

    def folders(self, plan: Plan, corpus: str, *arms: str) -> tuple[Path, ...]:
        """Of the table's runs of some arms."""
        found = [run.folder for arm in arms for run, _ in self.finals(plan, corpus, arm)]
        return tuple(dict.fromkeys(found))


def _began_with(run: RunSummary) -> tuple[object, ...]:
    """What paired runs share."""
    return run.data.fingerprint if run.data else None, run.initial_weights_hash, run.device.partition(":")[0]
