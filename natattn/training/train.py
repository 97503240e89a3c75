"""The training recipe: data, arms, guards, and the loop that feeds all arms the same batches."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from natattn.attention.types.tempered import fold_temperature
from natattn.distributed.ranks import Ranks, on_first
from natattn.errors import UserError
from natattn.models.pretrained import check_init, without_progress_bars
from natattn.storage.atomic import remove_unfinished, replacing_folder
from natattn.tracking.console import Console
from natattn.tracking.metrics_file import FILE_NAME, check_position
from natattn.training.arm import Arm
from natattn.training.build import build_arms, full_model, open_task
from natattn.training.checkpoint import Outcome, Progress, restore_checkpoint
from natattn.training.devices import deterministic
from natattn.training.guards import check_guards, check_ranks
from natattn.training.interruption import BrokenOffError, Interruption
from natattn.training.resource_errors import explain_out_of_memory
from natattn.training.run import Run
from natattn.training.run_folder import RunLock, check_contained, check_unused, read_run
from natattn.training.run_record import finish_record, new_record, resumed_record
from natattn.training.settings import RunSettings


@dataclass(frozen=True)
class RunResult:
    """Outcome of a run.

    Attributes:
        signal: number of the signal that interrupted it.
    """

    outcome: Outcome
    signal: int | None = None


def train(settings: RunSettings, folder: Path, *, group: str | None = None, ranks: Ranks | None = None) -> RunResult:
    """Train the run of ``settings`` in ``folder``, or resume it.

    Args:
        group: name of the sweep that the run belongs to.
        ranks: the processes that train it together; all call this with the same arguments.

    Raises: UserError for anything that the user can fix; a new folder then stays empty.
    """
    settings.check()
    ranks = ranks or Ranks()
    check_ranks(settings, ranks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(settings.train.deterministic, settings.device))

        # Data: the first rank locks the folder and fills the caches that the others read.
        on_first(ranks, lambda: _claim_folder(stack, settings, folder, ranks))
        task = open_task(settings)

        # Arms: the same initial weights, each with its attention, probe and optimizer.
        arms = build_arms(settings, task, ranks)
        leaky = check_guards(arms, attention=settings.model.attention)
        record = new_record(settings, arms, group=group, leaky=leaky)

        # Resume: the saved run must agree with this one; its newest valid checkpoint is loaded.
        progress, metrics_position, warnings = Progress(), 0, list[str]()
        if settings.resume is not None:
            record = resumed_record(record, read_run(folder))
            progress, metrics_position, warnings = restore_checkpoint(folder / "checkpoints", arms)
        on_first(ranks, lambda: check_position(folder / FILE_NAME, metrics_position))

        # Trackers: the metrics file, the console and perhaps Weights & Biases, on the first rank.
        run = Run(settings, folder, arms, record, progress)
        console = Console(record, total_steps=settings.train.steps) if ranks.is_first else None
        run.start(stack, console=console, warn=console.warning if console else None, metrics_position=metrics_position)
        for warning in warnings:
            run.warn(warning)

        interruption = stack.enter_context(Interruption())
        outcome = train_to_the_end(run, interruption)
        finish(run, outcome)
    return RunResult(outcome, interruption.signal if outcome == "interrupted" else None)


def train_to_the_end(run: Run, interruption: Interruption) -> Outcome:
    """Evaluate, save and train until there is a reason to stop; return it. The last step is then saved."""
    compiled: set[bool] = set()
    while True:
        outcome = evaluate_and_save(run, interruption)
        if outcome is not None:
            return outcome

        # Compiling takes up to minutes. It happens at the first step that a probe records and the first it does not.
        probe = run.arms[-1].probe
        is_recorded = probe is not None and run.progress.step % probe.every == 0
        compiles = run.settings.train.compile and is_recorded not in compiled
        compiled.add(is_recorded)
        try:
            with interruption.breakable() if compiles else contextlib.nullcontext():
                step(run)
        except BrokenOffError:  # resumes from the last checkpoint
            return "interrupted"


def step(run: Run) -> None:
    """Train every active arm on this step's batch, and log losses if they are due."""
    batch = run.batch()
    for arm in run.arms:
        if arm.active:
            run.prepare_step(arm)
            with explain_out_of_memory(f"step {run.progress.step} of arm {arm.name}", **run.advice):
                result = arm.train_step(batch, run.progress.step, run.learning_rate_factor)
            run.record_step(arm, result)
    run.end_step()


def evaluate_and_save(run: Run, interruption: Interruption, *, out_of_time: bool | None = None) -> Outcome | None:
    """Evaluate and save if that is due before the next step; return the reason to end the run there, or None.

    A run ends with an evaluation, a checkpoint and the test metrics; an interrupted one only with a checkpoint.

    Args:
        out_of_time: whether the time limit is reached; None to read the clock.
    """
    train, step = run.settings.train, run.progress.step
    outcome = _reason_to_stop(run, interruption, out_of_time)

    if run.progress.evaluated_step < step and (
        step % train.evaluate_every == 0 or outcome in ("finished", "time_limit")
    ):
        if not run.evaluate(interruption):
            outcome = "interrupted"
        elif outcome is None:
            outcome = _reason_to_stop(run, interruption, out_of_time)
        elif not run.any_active:
            outcome = "diverged"

    if outcome is not None or (step and step % train.checkpoint_every == 0):
        run.save()

    if outcome is not None and outcome != "interrupted" and not run.evaluate_test(interruption):
        outcome = "interrupted"
    return outcome


def _reason_to_stop(run: Run, interruption: Interruption, out_of_time: bool | None) -> Outcome | None:
    if not run.any_active:
        return "diverged"
    if run.progress.step >= run.settings.train.steps:
        return "finished"
    late = run.out_of_time if out_of_time is None else out_of_time
    if run.ranks.size > 1:
        # All ranks must stop at the same step. They agree when losses are logged, so as not to wait at every step.
        if run.progress.step % run.settings.train.log_every:
            interruption.hold()
            late = False
        else:
            answers = run.ranks.gather([interruption.received, late])
            interruption.agree([received for received, _ in answers])
            late = bool(answers[0][1])
    if interruption.signal is not None:
        return "interrupted"
    return "time_limit" if late else None


def finish(run: Run, outcome: Outcome) -> None:
    """Export the models unless the run was interrupted, enter the outcome in run.json, and warn about problems."""
    if outcome != "interrupted":
        for arm in run.arms:
            if arm.status != "diverged":
                _export(run, arm)
    finish_record(run.record, run.arms, outcome, identical=run.identical)
    if run.mirror:
        losses = {f"{arm}/validation/loss": loss for arm, loss in run.losses.items()}
        run.mirror.summarise({"status": outcome, "identical": run.identical, **losses})
    run.write_record()
    for arm in run.arms:
        if arm.status == "diverged":
            run.warn(f"arm {arm.name} diverged: {arm.cause}")
    if run.identical:
        run.warn("the two arms have identical weights: they were updated alike, so nothing was compared")


def _export(run: Run, arm: Arm) -> None:
    """Save an arm as a folder that transformers' ``from_pretrained`` loads."""
    model = full_model(arm, run.settings, run.progress.step)
    if not run.ranks.is_first:
        return
    if arm.tempered is not None:
        fold_temperature(model)  # the saved configuration cannot hold a temperature
    with replacing_folder(run.folder / "arms" / arm.name / "model") as written, without_progress_bars():
        model.save_pretrained(written)
        arm.task.save_beside(written)


def _claim_folder(stack: contextlib.ExitStack, settings: RunSettings, folder: Path, ranks: Ranks) -> None:
    """Lock the folder and check that the run can start or resume there; with several ranks also prepare the data."""
    if settings.resume is None:
        check_unused(folder)
    check_contained(folder)
    stack.enter_context(RunLock(folder))
    if settings.resume is not None:
        record = read_run(folder)
        status = record.get("status")
        if status in ("finished", "diverged", "time_limit") and not any((folder / "checkpoints").glob("step-*")):
            raise UserError(
                f"{folder}: the run has ended ({status}, step {record.get('steps')}) and has no checkpoint to resume "
                "from; start a new run"
            )
        for path in (folder, folder / "checkpoints"):
            remove_unfinished(path)
    check_init(settings.init)
    if ranks.size > 1:
        open_task(settings)
