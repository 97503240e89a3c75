"""`seeds=N`: runs that differ in their seed alone, trained as one computation.

Every seed is an ordinary run with a folder of its own, ``seed<s>``, which holds what the run by itself would have
written, is counted as that run, and can be resumed by itself. Only the training steps are joint.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from natattn.errors import UserError
from natattn.models.pretrained import check_init
from natattn.stacked.arm import JointArm
from natattn.stacked.console import SeedMeans
from natattn.stacked.model import check_stackable
from natattn.tasks.base import Task
from natattn.tracking.console import Console
from natattn.training import run_folder
from natattn.training.arms import Arm
from natattn.training.build import build_arms, open_task
from natattn.training.determinism import deterministic
from natattn.training.facts import run_facts
from natattn.training.guards import check_guards
from natattn.training.interruption import Interruption
from natattn.training.loop import Loop
from natattn.training.memory import told_where
from natattn.training.progress import Outcome, Progress
from natattn.training.run import OpenRun, RunResult
from natattn.training.settings import RunSettings

# Of the outcomes of several seeds the first of these that occurs is that of all.
_GRAVEST: tuple[Outcome, ...] = ("interrupted", "time_limit", "diverged", "finished")


def train_replicas(settings: RunSettings, folder: Path, *, group: str | None = None) -> RunResult:
    """Train the runs of ``settings.of_each_seed()`` in ``folder``/seed<s>.

    Args:
        group: name of the sweep that they belong to; by default their folder's.

    Raises: UserError for whatever the user can mend; then a new folder holds nothing of ours.
    """
    settings.check()
    folders = [folder / f"seed{each.seed}" for each in settings.per_seed()]
    for path in (folder, *folders):
        run_folder.check_unused(path)
    with run_folder.RunLock(folder):
        return train_in_folders(settings, folders, group=group or folder.name)


def train_in_folders(settings: RunSettings, folders: Sequence[Path], *, group: str | None = None) -> RunResult:
    """Train the runs of ``settings.of_each_seed()`` in a folder each; ``settings`` have been checked.

    Raises: UserError for whatever the user can mend; then a new folder holds nothing of ours.
    """
    members = settings.per_seed()
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(settings.train.deterministic, settings.device))
        for path in folders:
            run_folder.check_contained(path)
            stack.enter_context(run_folder.RunLock(path))
            run_folder.check_unused(path)
        check_init(settings.init)
        task: Any = open_task(settings)  # a dataclass: each seed has its own order of the data
        built = [_checked_arms(each, replace(task, seed=each.seed)) for each in members]
        facts = [
            {**run_facts(each, arms, group), "replicas": len(members)}
            for each, arms in zip(members, built, strict=True)
        ]
        label = f"{facts[0]['label']} · means of {len(members)} seeds"
        console = Console({**facts[0], "label": label}, total_steps=settings.train.steps)
        means = SeedMeans(console, len(members))
        runs: list[OpenRun] = []
        for each, path, own, arms in zip(members, folders, facts, built, strict=True):
            runs.append(OpenRun(each, path, arms, own, partial(_warn_of, console, each.seed)))
            runs[-1].open(stack, means, Progress(), 0)
        interruption = stack.enter_context(Interruption())
        replicas = Replicas([run.loop for run in runs], means.show)
        outcomes = replicas.run(interruption, lambda number, outcome: runs[number].finish(outcome))
    outcome = next(each for each in _GRAVEST if each in outcomes)
    return RunResult(outcome, interruption.signal if outcome == "interrupted" else None)


def _checked_arms(settings: RunSettings, task: Task) -> list[Arm]:
    """The arms of one seed."""
    arms = build_arms(settings, task)
    check_guards(arms, attention=settings.model.attention)
    for arm in arms:
        try:
            check_stackable(arm.model)
        except ValueError as error:
            raise UserError(f"seeds: {error}") from None
    return arms


def _warn_of(console: Console, seed: int, text: str) -> None:
    console.warning(f"seed {seed}: {text}")


class Replicas:
    """The loops of several seeds in lockstep: each evaluates and saves by itself, their training steps are joint.

    A loop whose arms have all diverged ends; an arm that has diverged leaves its joint arm, and the others go on.

    Args:
        loops: of runs that differ in their seed alone, all at the same step.
        after_round: called when every loop has logged what it has to say of a step.
    """

    def __init__(self, loops: Sequence[Loop], after_round: Callable[[], None] = lambda: None) -> None:
        self.loops = list(loops)
        self.after_round = after_round
        self._joint: dict[int, JointArm] = {}  # by the arm's place in its run

    def run(self, interruption: Interruption, ended: Callable[[int, Outcome], None]) -> list[Outcome]:
        """Train all to their ends.

        Args:
            ended: told the number of a loop and its outcome as soon as it has one.
        """
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < len(self.loops):
            # Read once for all, so that all stop at the same step.
            now = Interruption()
            now.signal = interruption.signal
            out_of_time = any(loop.out_of_time for loop in self.loops)
            for number, loop in enumerate(self.loops):
                if number in outcomes:
                    continue
                outcome = loop.settle(now, out_of_time=out_of_time)
                if outcome is not None:
                    outcomes[number] = outcome
                    ended(number, outcome)
            self.after_round()
            self._advance([loop for number, loop in enumerate(self.loops) if number not in outcomes])
        return [outcomes[number] for number in range(len(self.loops))]

    def _advance(self, loops: list[Loop]) -> None:
        """One joint step of every arm, in the loops where it is active."""
        if not loops:
            return
        slices = [loop.slices() for loop in loops]
        for place in range(len(loops[0].arms)):
            chosen = [index for index, loop in enumerate(loops) if loop.arms[place].active]
            if not chosen:
                continue
            members = [loops[index] for index in chosen]
            for loop in members:
                loop.before_step(loop.arms[place])
            joint = self._joint_arm(place, [loop.arms[place] for loop in members])
            # Language modelling alone has stacked models: a slice is its tokens.
            together = [torch.cat(parts) for parts in zip(*(slices[index] for index in chosen), strict=True)]  # type: ignore[arg-type]
            with told_where(f"step {loops[0].progress.step} of {len(members)} seeds", anew="fewer seeds="):
                results = joint.train_step(together, loops[0].progress.step, loops[0].rate_factor)
            for loop, result in zip(members, results, strict=True):
                loop.took_step(loop.arms[place], result)
        for loop in loops:
            loop.end_step()

    def _joint_arm(self, place: int, arms: list[Arm]) -> JointArm:
        """The joint arm of these, made anew where one has left."""
        known = self._joint.get(place)
        if known is None or [id(arm) for arm in known.arms] != [id(arm) for arm in arms]:
            if known is not None:
                known.release()
            known = self._joint[place] = JointArm(arms)
        return known
