"""A run in training: its arms, how far they are, and where their metrics go."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natattn.storage.atomic import write_json
from natattn.tasks.base import Batch, BatchSlice, to_device
from natattn.tracking import DIVERGED, Record, Tracker
from natattn.tracking.metrics_file import FILE_NAME, MetricsFile, NoMetricsFile
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror
from natattn.training import run_folder
from natattn.training.arm import Arm, StepResult, identical
from natattn.training.checkpoint import Progress, save_checkpoint
from natattn.training.environment import write_environment
from natattn.training.evaluate import attention_metrics, cost_metrics, process_peak_memory, split_metrics
from natattn.training.interruption import BrokenOffError, Interruption
from natattn.training.resource_errors import advice_for_evaluation, advice_for_step, explain_out_of_memory
from natattn.training.settings import RunSettings


class Run:
    """A run in training.

    Step s is the state after s updates: ``train/loss`` at step s is the loss of batch s with those weights, and
    ``validation/loss`` at step s is measured before update s.

    Attributes:
        arms: the reference first if there is one, the candidate last.
        record: content of run.json.
        warn: shows a warning.
        identical: whether the two arms had equal weights at the last evaluation.
        losses: validation losses at the last evaluation, by arm.
        advice: settings with which a step needs less memory.
    """

    def __init__(
        self, settings: RunSettings, folder: Path, arms: list[Arm], record: dict[str, Any], progress: Progress
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.arms = arms
        self.record = record
        self.progress = progress
        self.ranks = arms[0].ranks
        self.device = arms[0].device
        self.task = arms[0].task
        self.identical = False
        self.losses: dict[str, float] = {}
        models = [arm.model for arm in arms]
        self.advice = advice_for_step(settings.train, models, divisible=self.task.unit != "pair")
        self.warn: Callable[[str], None] = lambda text: None
        self.metrics: MetricsFile | NoMetricsFile = NoMetricsFile()
        self.mirror: WandbMirror | None = None
        self._trackers: list[Tracker | NoMetricsFile] = [self.metrics]
        self._pending: list[tuple[int, Arm, StepResult]] = []  # losses that are still on the device
        # Step 0 is evaluated before it is saved, so a run that has evaluated was resumed from a checkpoint.
        self._saved_step = progress.step if progress.evaluated_step >= 0 else -1

    def start(
        self,
        stack: contextlib.ExitStack,
        *,
        console: Tracker | None,
        warn: Callable[[str], None] | None,
        metrics_position: int = 0,
    ) -> None:
        """Write config.yaml, environment.json and run.json, open the trackers on ``stack`` and start the clock.

        Args:
            console, warn: None on ranks that write nothing.
            metrics_position: size that the metrics file is truncated to.
        """
        if console is not None and warn is not None:
            config = self.settings.model_dump(mode="json")
            self.warn = warn
            self.folder.mkdir(parents=True, exist_ok=True)
            run_folder.write_config(self.folder, config, self.record["config_hash"])
            write_environment(self.folder, self.device)
            self.write_record()
            self.metrics = stack.enter_context(MetricsFile(self.folder / FILE_NAME, truncate_at=metrics_position))
            self._trackers = [self.metrics, stack.enter_context(console)]
            if isinstance(self.settings.tracker, WandbSettings):
                self.mirror = WandbMirror(
                    self.settings.tracker,
                    folder=self.folder,
                    config=config,
                    group=self.record["group"],
                    name=self.folder.name,
                    run_id=self.record["run_id"],
                    warn=warn,
                )
                self._trackers.append(stack.enter_context(self.mirror))
        self._probe_inputs = self.task.probe_inputs(self.device)
        self._started = time.perf_counter() - self.progress.seconds
        for arm in self.arms:
            arm.stopwatch.seconds = self.progress.arm_seconds.get(arm.name, 0.0)
            arm.optimizer_stopwatch.seconds = self.progress.arm_seconds.get(f"{arm.name} optimizer", 0.0)

    def write_record(self) -> None:
        """Write run.json, on the first rank."""
        if self.ranks.is_first:
            write_json(self.folder / run_folder.RUN, self.record)

    @property
    def seconds(self) -> float:
        """Wall time of training so far, accumulated over resumes."""
        return time.perf_counter() - self._started

    @property
    def out_of_time(self) -> bool:
        """Return whether ``train.max_seconds`` have passed."""
        limit = self.settings.train.max_seconds
        return limit is not None and self.seconds >= limit

    @property
    def any_active(self) -> bool:
        """Return whether any arm still trains."""
        return any(arm.active for arm in self.arms)

    @property
    def learning_rate_factor(self) -> float:
        """The schedule's factor on the learning rates of this step."""
        return self.settings.schedule.factor(self.progress.step, self.settings.train.steps)

    def batch(self) -> list[Batch]:
        """Return this step's batch on the device, as accumulation slices; each rank gets its own part."""
        count = self.settings.train.accumulation_steps
        slices = [BatchSlice(self.ranks.rank, self.ranks.size, index, count) for index in range(count)]
        return [to_device(self.task.batch(self.progress.step, part), self.device) for part in slices]

    def prepare_step(self, arm: Arm) -> None:
        """Set the arm's temperature, and have its optimizer measure the step before an evaluation."""
        train, step = self.settings.train, self.progress.step
        arm.at_step(step, train.steps)
        if (step + 1) % train.evaluate_every == 0 or step + 1 == train.steps:
            arm.optimizer.measure_next_step()

    def record_step(self, arm: Arm, result: StepResult) -> None:
        """Keep the result of a step, on the device until losses are logged."""
        self._pending.append((self.progress.step, arm, result))

    def end_step(self) -> None:
        """Count the step; every ``train.log_every`` steps log the losses."""
        self.progress.step += 1
        if self.progress.step % self.settings.train.log_every == 0:
            self.log_steps()

    def log_steps(self) -> None:
        """Log the losses of the steps since the last call, and stop arms whose loss is not finite."""
        records = []
        losses = [result.loss for _, _, result in self._pending]
        if self.ranks.size > 1:
            losses = [loss / self.ranks.size for loss in self.ranks.sum(losses)]
        for (step, arm, result), batch_loss in zip(self._pending, losses, strict=True):
            if not arm.active:
                continue
            values = {"train/loss": float(batch_loss)}
            if step % self.settings.train.log_every == 0:
                factor = self.settings.schedule.factor(step, self.settings.train.steps)
                values["train/gradient_norm"] = float(result.gradient_norm)
                values["train/learning_rate"] = arm.base_learning_rate * factor
            if not math.isfinite(loss := values["train/loss"]):
                arm.diverge(step, f"the training loss is {loss}")
                values[DIVERGED] = float(step)
            records.extend(self._records(step, arm, values))
        self._pending.clear()
        self._log(records)

    def evaluate(self, interruption: Interruption) -> bool:
        """Log validation metrics, attention and costs of every active arm, and flush the trackers.

        Returns: False if a signal aborted the evaluation; then nothing is logged and it can be repeated.
        Raises: ResourceError if memory runs out.
        """
        self.log_steps()
        step = self.progress.step
        before = [(arm, arm.patterns, arm.status, arm.cause) for arm in self.arms]
        losses: dict[str, float] = {}
        records: list[Record] = []
        try:
            with interruption.breakable():
                for arm in [arm for arm in self.arms if arm.active]:
                    values = self._evaluate_arm(arm, step)
                    losses[arm.name] = values["validation/loss"]
                    records.extend(self._records(step, arm, values))
                if self.device.type == "cpu":
                    records.append(Record(step, None, "time/peak_memory_bytes", process_peak_memory(), self.seconds))
        except BrokenOffError:
            for arm, patterns, status, cause in before:
                arm.patterns, arm.status, arm.cause = patterns, status, cause
            return False
        self.losses = losses
        self._log(records)
        for tracker in self._trackers:
            tracker.flush()
        self.progress.evaluated_step = step
        self._saved_step = -1  # a checkpoint of this step that was resumed from predates the evaluation: save again
        if step and len(self.arms) == 2 and len(losses) == 2:
            same = identical(self.arms[0].model, self.arms[1].model)
            self.identical = all(self.ranks.gather(same))
        return True

    def _evaluate_arm(self, arm: Arm, step: int) -> dict[str, float]:
        train = self.settings.train
        arm.at_step(step, train.steps)
        with explain_out_of_memory(f"evaluation of arm {arm.name} at step {step}", **advice_for_evaluation(train)):
            values = split_metrics(arm, "validation", batch_size=train.evaluation_batch_size)
            values.update(attention_metrics(arm, self._probe_inputs))
        if not math.isfinite(loss := values["validation/loss"]):
            arm.diverge(step, f"the validation loss is {loss}")
            values = {DIVERGED: float(step), **values}
        return {**values, **cost_metrics(arm, step)}

    def evaluate_test(self, interruption: Interruption) -> bool:
        """Log the test metrics of every active arm; False if a signal aborted it."""
        if self.task.has_test:
            batch_size = self.settings.train.evaluation_batch_size
            try:
                with interruption.breakable():
                    metrics = [
                        (arm, split_metrics(arm, "test", batch_size=batch_size)) for arm in self.arms if arm.active
                    ]
            except BrokenOffError:
                return False
            step = self.progress.step
            self._log([record for arm, values in metrics for record in self._records(step, arm, values)])
        self.metrics.flush()
        return True

    def save(self) -> None:
        """Save a checkpoint of this step unless there is one; the best has the candidate's lowest validation loss."""
        progress = self.progress
        if self._saved_step == progress.step:
            return
        self.log_steps()
        self.metrics.flush()
        loss = self.losses.get(self.arms[-1].name, math.inf) if progress.evaluated_step == progress.step else math.inf
        best = loss < progress.best_loss  # False for nan
        if best:
            progress.best_loss = loss
        progress.seconds = self.seconds
        progress.arm_seconds = {arm.name: arm.stopwatch.read() for arm in self.arms} | {
            f"{arm.name} optimizer": arm.optimizer_stopwatch.read() for arm in self.arms
        }
        save_checkpoint(
            self.folder / "checkpoints",
            progress,
            self.arms,
            metrics_position=self.metrics.position(),
            keep=self.settings.train.keep_checkpoints,
            best=best,
        )
        self._saved_step = progress.step

    def _records(self, step: int, arm: Arm, values: dict[str, float]) -> list[Record]:
        return [Record(step, arm.name, name, value, self.seconds) for name, value in values.items()]

    def _log(self, records: list[Record]) -> None:
        if records:
            for tracker in self._trackers:
                tracker.log(records)
