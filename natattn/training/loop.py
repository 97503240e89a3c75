"""The loop: the same batches to every arm, evaluations and checkpoints in between.

Step s is the state after s updates: ``train/loss`` at step s is the loss of batch s under those weights, and
``validation/loss`` at step s is measured before update s.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from natattn.tasks.base import Batch, BatchSlice, HeldOut, to_device
from natattn.tracking import DIVERGED, Record, Tracker
from natattn.tracking.metrics_file import MetricsFile, NoMetricsFile
from natattn.training.arms import Arm, StepResult, identical
from natattn.training.checkpoint import save_checkpoint
from natattn.training.evaluate import (
    attention_metrics,
    clock_metrics,
    optimizer_metrics,
    process_peak_memory,
    split_metrics,
)
from natattn.training.interruption import BrokenOffError, Interruption
from natattn.training.memory import less_for_a_step, less_for_an_evaluation, told_where
from natattn.training.progress import Outcome, Progress, TrainSettings
from natattn.training.schedule import ScheduleSettings


class Loop:
    """Trains the arms of one run to the end, to the time limit or to an interruption.

    Args:
        arms: the reference first where there is one, the candidate last.
        trackers: told every record, the metrics file among them.
    """

    def __init__(
        self,
        arms: list[Arm],
        settings: TrainSettings,
        schedule: ScheduleSettings,
        *,
        folder: Path,
        metrics: MetricsFile | NoMetricsFile,
        trackers: Sequence[Tracker],
        progress: Progress,
    ) -> None:
        self.arms = arms
        self.settings = settings
        self.schedule = schedule
        self.task = arms[0].task
        self.folder = folder
        self.metrics = metrics
        self.trackers: list[Tracker | NoMetricsFile] = [metrics, *trackers]
        self.progress = progress
        self.device = arms[0].device
        self.ranks = arms[0].ranks
        self.identical = False
        self._losses: dict[str, float] = {}  # validation losses at the last evaluation, by arm
        self._probe_inputs = self.task.probe_inputs(self.device)
        self._pending: list[tuple[int, Arm, StepResult]] = []
        self._compiled: set[bool] = set()  # kinds of steps, observed or not
        models = [arm.model for arm in arms]
        self._less_for_a_step = less_for_a_step(settings, models, divisible=self.task.unit != "pair")
        # Step 0 is evaluated before anything is saved: a run that has evaluated starts from a checkpoint of its step.
        self._saved_step = progress.step if progress.evaluated_step >= 0 else -1
        self._started = time.perf_counter() - progress.seconds
        for arm in arms:
            arm.stopwatch.seconds = progress.arm_seconds.get(arm.name, 0.0)
            arm.optimizer_stopwatch.seconds = progress.arm_seconds.get(f"{arm.name} optimizer", 0.0)

    @property
    def seconds(self) -> float:
        """Wall seconds of training so far, over all sittings."""
        return time.perf_counter() - self._started

    def run(self, interruption: Interruption) -> Outcome:
        """Train; afterwards the metrics and a checkpoint of the last step are on disk."""
        try:
            while (outcome := self.settle(interruption)) is None:
                self.advance(interruption)
        except BrokenOffError:  # compiling: what was saved before is where the run goes on
            return "interrupted"
        return outcome

    def settle(self, interruption: Interruption, *, out_of_time: bool | None = None) -> Outcome | None:
        """Evaluate and save what is due before the next step; why training ends, or None where it goes on.

        Args:
            out_of_time: whether the time limit has been reached; None to look at the clock.
        """
        settings, step = self.settings, self.progress.step
        outcome = self._outcome(interruption, out_of_time)
        # A time limit still ends with an evaluation; an interruption does not wait for one.
        due = step % settings.evaluate_every == 0 or outcome in ("finished", "time_limit")
        if due and step > self.progress.evaluated_step:
            if not self.evaluate(interruption):
                outcome = "interrupted"
            else:
                self._saved_step = -1  # a checkpoint that was resumed from does not know of the evaluation
                outcome = self._outcome(interruption, out_of_time) if outcome is None else self._final(outcome)
        if self._saved_step != step and (outcome is not None or (step and step % settings.checkpoint_every == 0)):
            self.checkpoint()
            self._saved_step = step
        if outcome not in (None, "interrupted") and not self._evaluate_test(interruption):
            return "interrupted"
        return outcome

    def _outcome(self, interruption: Interruption, out_of_time: bool | None) -> Outcome | None:
        """Whether, and why, training stops before the next step."""
        if not any(arm.active for arm in self.arms):
            return "diverged"
        if self.progress.step >= self.settings.steps:
            return "finished"
        late = self.out_of_time if out_of_time is None else out_of_time
        if self.ranks.size > 1:
            late = self._agree(interruption, late)
        if interruption.signal is not None:
            return "interrupted"
        return "time_limit" if late else None

    @property
    def out_of_time(self) -> bool:
        """Whether ``max_seconds`` have passed."""
        limit = self.settings.max_seconds
        return limit is not None and self.seconds >= limit

    def _agree(self, interruption: Interruption, late: bool) -> bool:
        """Have all ranks stop at the same step; they ask each other when losses are read, not to wait at every step."""
        if self.progress.step % self.settings.log_every:
            interruption.hold()
            return False
        found = self.ranks.gather([interruption.received, late])
        interruption.agree([number for number, _ in found])
        return bool(found[0][1])

    def _final(self, outcome: Outcome) -> Outcome:
        """The outcome after the last evaluation, which may have found that no arm is left."""
        return outcome if any(arm.active for arm in self.arms) else "diverged"

    def advance(self, interruption: Interruption) -> None:
        """One step of every active arm; their losses are read and logged when ``log_every`` says so.

        Raises: BrokenOffError where a signal comes while a step is being compiled; ResourceError where memory ends.
        """
        step, slices = self.progress.step, self.slices()
        with interruption.breakable() if self._compiles() else contextlib.nullcontext():
            for arm in self.arms:
                if arm.active:
                    self.before_step(arm)
                    with self._enough_memory(arm.name):
                        result = arm.train_step(slices, step, self.rate_factor)
                    self.took_step(arm, result)
        self.end_step()

    def _compiles(self) -> bool:
        """Whether this step may be compiled, which takes up to minutes: the first of those that attention is observed
        in, and the first of the others."""
        if not self.settings.compile:
            return False
        probe = self.arms[-1].probe
        kind = probe is not None and self.progress.step % probe.every == 0
        is_new = kind not in self._compiled
        self._compiled.add(kind)
        return is_new

    def _enough_memory(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Around a training step of the arms of that name: says which settings would need less memory."""
        return told_where(f"step {self.progress.step} of arm {name}", **self._less_for_a_step)

    @property
    def rate_factor(self) -> float:
        """What the schedule multiplies the learning rates of this step by."""
        return self.schedule.factor(self.progress.step, self.settings.steps)

    def slices(self) -> list[Batch]:
        """This step's batch on the device, in accumulation slices."""
        count = self.settings.accumulation_steps
        parts = [BatchSlice(self.ranks.rank, self.ranks.size, index, count) for index in range(count)]
        return [to_device(self.task.batch(self.progress.step, part), self.device) for part in parts]

    def before_step(self, arm: Arm) -> None:
        """Set what depends on the step; have the step before an evaluation measured."""
        step = self.progress.step
        arm.at_step(step, self.settings.steps)
        if (step + 1) % self.settings.evaluate_every == 0 or step + 1 == self.settings.steps:
            arm.optimizer.measure_next_step()

    def took_step(self, arm: Arm, result: StepResult) -> None:
        """Keep what this step measured until losses are read."""
        self._pending.append((self.progress.step, arm, result))

    def end_step(self) -> None:
        """All arms have taken this step."""
        self.progress.step += 1
        if self.progress.step % self.settings.log_every == 0:
            self._drain()

    def _drain(self) -> None:
        """Read the pending losses off the device, log them, and stop arms whose loss is not finite."""
        records = []
        losses = [result.loss for _, _, result in self._pending]
        if self.ranks.size > 1:
            losses = [loss / self.ranks.size for loss in self.ranks.sum(losses)]
        for (step, arm, result), batch_loss in zip(self._pending, losses, strict=True):
            if not arm.active:
                continue
            loss = float(batch_loss)
            records.append(self._record("train/loss", loss, arm, step))
            if step % self.settings.log_every == 0:
                records.append(self._record("train/gradient_norm", float(result.gradient_norm), arm, step))
                rate = arm.base_learning_rate * self.schedule.factor(step, self.settings.steps)
                records.append(self._record("train/learning_rate", rate, arm, step))
            if not math.isfinite(loss):
                arm.diverge(step, f"the training loss is {loss}")
                records.append(self._record(DIVERGED, float(step), arm, step))
        self._pending.clear()
        self._log(records)

    def evaluate(self, interruption: Interruption) -> bool:
        """Log every active arm's validation metrics, attention, energy factors and clock, and make it all durable.

        Returns: false where a signal has ended it; then nothing is logged, and it can be made again.
        Raises: ResourceError where memory ends.
        """
        self._drain()
        step = self.progress.step
        before = [(arm, arm.patterns, arm.status, arm.cause) for arm in self.arms]
        try:
            with interruption.breakable():
                losses, records = self._evaluation(step)
        except BrokenOffError:
            for arm, patterns, status, cause in before:
                arm.patterns, arm.status, arm.cause = patterns, status, cause
            return False
        self._losses = losses
        self._log(records)
        for tracker in self.trackers:
            tracker.flush()
        self.progress.evaluated_step = step
        if step and len(self.arms) == 2 and len(losses) == 2:
            same = identical(self.arms[0].model, self.arms[1].model)
            self.identical = all(self.ranks.gather(same))
        return True

    def _evaluation(self, step: int) -> tuple[dict[str, float], list[Record]]:
        """Validation losses by arm, and all that is to be logged."""
        records: list[Record] = []
        losses = {}
        for arm in self.arms:
            if not arm.active:
                continue
            arm.at_step(step, self.settings.steps)
            with told_where(f"evaluation of arm {arm.name} at step {step}", **less_for_an_evaluation(self.settings)):
                values = self._metrics_over(arm, "validation")
                values.update(attention_metrics(arm, self._probe_inputs))
            losses[arm.name] = values["validation/loss"]
            if not math.isfinite(losses[arm.name]):
                arm.diverge(step, f"the validation loss is {losses[arm.name]}")
                records.append(self._record(DIVERGED, float(step), arm, step))
            values.update(optimizer_metrics(arm, step), **clock_metrics(arm, step))
            records.extend(self._record(name, value, arm, step) for name, value in values.items())
        if self.device.type == "cpu":
            records.append(Record(step, None, "time/peak_memory_bytes", process_peak_memory(), self.seconds))
        return losses, records

    def _evaluate_test(self, interruption: Interruption) -> bool:
        """Log the test metrics of every arm that is left, once, at the end; false where a signal has ended it."""
        if self.task.has_test:
            step = self.progress.step
            try:
                with interruption.breakable():
                    found = [(arm, self._metrics_over(arm, "test")) for arm in self.arms if arm.active]
            except BrokenOffError:
                return False
            self._log([self._record(name, value, arm, step) for arm, values in found for name, value in values.items()])
        self.metrics.flush()
        return True

    def _metrics_over(self, arm: Arm, split: HeldOut) -> dict[str, float]:
        found = split_metrics(arm, split, batch_size=self.settings.evaluation_batch_size)
        return {f"{split}/{name}": value for name, value in found.items()}

    def checkpoint(self) -> None:
        """Save everything that going on from this step needs; the best is the candidate's lowest validation loss."""
        self._drain()
        self.metrics.flush()
        evaluated = self.progress.evaluated_step == self.progress.step
        loss = self._losses.get(self.arms[-1].name, math.inf) if evaluated else math.inf
        best = loss < self.progress.best_loss  # false for nan
        if best:
            self.progress.best_loss = loss
        self.progress.seconds = self.seconds
        self.progress.arm_seconds = {arm.name: arm.stopwatch.read() for arm in self.arms} | {
            f"{arm.name} optimizer": arm.optimizer_stopwatch.read() for arm in self.arms
        }
        state = {
            "progress": self.progress.to_json(),
            "metrics_position": self.metrics.position(),
            "arms": {arm.name: {"status": arm.status, "cause": arm.cause} for arm in self.arms},
        }
        keep = self.settings.keep_checkpoints
        save_checkpoint(self.folder / "checkpoints", self.progress.step, self.arms, state, keep=keep, best=best)

    def summary(self) -> dict[str, float]:
        """Validation losses of the arms at the last evaluation, by metric name."""
        return {f"{arm}/validation/loss": loss for arm, loss in self._losses.items()}

    def _record(self, name: str, value: float, arm: Arm, step: int) -> Record:
        return Record(step, arm.name, name, value, self.seconds)

    def _log(self, records: list[Record]) -> None:
        if records:
            for tracker in self.trackers:
                tracker.log(records)
