"""`seeds=N`: runs that differ only in their seed, trained as one computation.

Every seed is an ordinary run with its own folder ``seed<s>``, with the same content as if it was trained alone, and can
be resumed alone. Only the training steps are stacked.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from natattn.errors import UserError
from natattn.models.pretrained import check_init
from natattn.stacked.arm import StackedArm
from natattn.stacked.console import SeedMeans
from natattn.stacked.model import check_stackable
from natattn.tracking.console import Console
from natattn.training.build import build_arms, open_task
from natattn.training.checkpoint import Outcome, Progress
from natattn.training.devices import deterministic
from natattn.training.guards import check_guards
from natattn.training.interruption import Interruption
from natattn.training.resource_errors import explain_out_of_memory
from natattn.training.run import Run
from natattn.training.run_folder import RunLock, check_contained, check_unused
from natattn.training.run_record import new_record
from natattn.training.settings import RunSettings
from natattn.training.train import RunResult, evaluate_and_save, finish

# The outcome of all seeds is the first of these that any seed has.
_PRECEDENCE: tuple[Outcome, ...] = ("interrupted", "time_limit", "diverged", "finished")


def train_replicas(settings: RunSettings, folder: Path, *, group: str | None = None) -> RunResult:
    """Train the runs of ``settings.per_seed()`` in ``folder``/seed<s>.

    Args:
        group: name of the sweep that they belong to; by default the name of the folder.

    Raises: UserError for anything that the user can fix; a new folder then stays empty.
    """
    settings.check()
    folders = [folder / f"seed{member.seed}" for member in settings.per_seed()]
    for path in (folder, *folders):
        check_unused(path)
    with RunLock(folder):
        return train_in_folders(settings, folders, group=group or folder.name)


def train_in_folders(settings: RunSettings, folders: Sequence[Path], *, group: str | None = None) -> RunResult:
    """Train the runs of ``settings.per_seed()``, one in each folder; ``settings`` have been checked.

    Raises: UserError for anything that the user can fix; new folders then stay empty.
    """
    members = settings.per_seed()
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(settings.train.deterministic, settings.device))
        for path in folders:
            check_contained(path)
            stack.enter_context(RunLock(path))
            check_unused(path)
        check_init(settings.init)
        task: Any = open_task(settings)  # a dataclass; each seed gets a copy with its own order of the data
        runs: list[Run] = []
        for member, path in zip(members, folders, strict=True):
            arms = build_arms(member, replace(task, seed=member.seed))
            leaky = check_guards(arms, attention=member.model.attention)
            for arm in arms:
                try:
                    check_stackable(arm.model)
                except ValueError as error:
                    raise UserError(f"seeds: {error}") from None
            record = {**new_record(member, arms, group=group, leaky=leaky), "replicas": len(members)}
            runs.append(Run(member, path, arms, record, Progress()))

        label = f"{runs[0].record['label']} · means of {len(members)} seeds"
        console = Console({**runs[0].record, "label": label}, total_steps=settings.train.steps)
        means = SeedMeans(console, len(members))
        for run in runs:
            prefix = f"seed {run.settings.seed}: "
            run.start(stack, console=means, warn=lambda text, prefix=prefix: console.warning(prefix + text))  # type: ignore[misc]
        interruption = stack.enter_context(Interruption())
        outcomes = _train_to_the_end(runs, means, interruption)
    outcome = next(outcome for outcome in _PRECEDENCE if outcome in outcomes)
    return RunResult(outcome, interruption.signal if outcome == "interrupted" else None)


def _train_to_the_end(runs: list[Run], means: SeedMeans, interruption: Interruption) -> list[Outcome]:
    """Train all seeds in lockstep: each evaluates and saves by itself; arms of one name take their steps together."""
    stacked: dict[int, StackedArm] = {}  # by the arm's index in its run
    outcomes: dict[int, Outcome] = {}
    while True:
        # The signal and the clock are read once for all, so that all seeds stop at the same step.
        received, out_of_time = Interruption(), any(run.out_of_time for run in runs)
        received.signal = interruption.signal
        for index, run in enumerate(runs):
            if index not in outcomes and (outcome := evaluate_and_save(run, received, out_of_time=out_of_time)):
                outcomes[index] = outcome
                finish(run, outcome)
        means.show()
        remaining = [run for index, run in enumerate(runs) if index not in outcomes]
        if not remaining:
            return [outcomes[index] for index in range(len(runs))]
        _step(remaining, stacked)


def _step(runs: list[Run], stacked: dict[int, StackedArm]) -> None:
    """Train the active arms of all runs on their batches, arms with the same index as one."""
    step, factor = runs[0].progress.step, runs[0].learning_rate_factor
    batches = [run.batch() for run in runs]
    for index in range(len(runs[0].arms)):
        active = [(run, run.arms[index], batch) for run, batch in zip(runs, batches, strict=True)]
        active = [member for member in active if member[1].active]
        if not active:
            continue
        for run, arm, _ in active:
            run.prepare_step(arm)
        arms = [arm for _, arm, _ in active]
        if index not in stacked or list(map(id, stacked[index].arms)) != list(map(id, arms)):
            if index in stacked:  # an arm has diverged: stack the others again
                stacked[index].release()
            stacked[index] = StackedArm(arms)
        # Only language models can be stacked; their batches are tokens.
        slices = [torch.cat(parts) for parts in zip(*(batch for _, _, batch in active), strict=True)]  # type: ignore[arg-type]
        with explain_out_of_memory(f"step {step} of {len(active)} seeds", anew="fewer seeds="):
            results = stacked[index].train_step(slices, step, factor)
        for (run, arm, _), result in zip(active, results, strict=True):
            run.record_step(arm, result)
    for run in runs:
        run.end_step()
