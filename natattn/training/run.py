"""One run from typed settings to a finished folder: data, arms, guards, loop, exported models."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from natattn.attention.types.tempered import fold_temperature
from natattn.config.messages import first_line
from natattn.distributed.ranks import Ranks
from natattn.errors import UserError
from natattn.models.pretrained import check_init, without_progress_bars
from natattn.storage.atomic import remove_unfinished, replacing_folder, write_json
from natattn.storage.documents import whole_number
from natattn.tracking import Tracker
from natattn.tracking.console import Console
from natattn.tracking.metrics_file import FILE_NAME, MetricsFile, NoMetricsFile, check_position
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror
from natattn.training import run_folder
from natattn.training.arm_state import read_arm
from natattn.training.arms import Arm
from natattn.training.build import build_arms, open_task, whole_model
from natattn.training.checkpoint import checkpoint_name, load_newest
from natattn.training.determinism import deterministic
from natattn.training.distributed import check_ranks, on_first
from natattn.training.environment import write_environment
from natattn.training.facts import check_repeated_data, finish_facts, resumed_facts, run_facts
from natattn.training.guards import check_guards
from natattn.training.interruption import Interruption
from natattn.training.loop import Loop
from natattn.training.progress import Outcome, Progress, status_in
from natattn.training.settings import RunSettings


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its outcome, and the number of the signal that interrupted it."""

    outcome: Outcome
    signal: int | None = None


def train(settings: RunSettings, folder: Path, *, group: str | None = None, ranks: Ranks | None = None) -> RunResult:
    """Train (or resume) the run of ``settings`` in ``folder``.

    Args:
        group: name of the sweep that the run belongs to.
        ranks: the processes that train it together, which all call this with the same arguments.

    Raises: UserError for whatever the user can mend; then a new folder holds nothing of ours.
    """
    settings.check()
    ranks = ranks or Ranks()
    check_ranks(settings, ranks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(settings.train.deterministic, settings.device))
        on_first(ranks, lambda: _begin(stack, settings, folder, ranks))
        task = open_task(settings)
        arms = build_arms(settings, task, ranks)
        leaky = check_guards(arms, attention=settings.model.attention)
        facts = {**run_facts(settings, arms, group), "leaky": leaky}
        if settings.resume is not None:
            facts = resumed_facts(facts, run_folder.read_run(folder))
        if settings.repeat is not None:
            check_repeated_data(facts, run_folder.read_run(Path(settings.repeat)), settings.repeat)
        return _train(settings, folder, arms, facts)


def _begin(stack: contextlib.ExitStack, settings: RunSettings, folder: Path, ranks: Ranks) -> None:
    """What one process does before anything is built: lock the folder, and prepare the data, which is kept."""
    if settings.resume is None:
        run_folder.check_unused(folder)
    run_folder.check_contained(folder)
    stack.enter_context(run_folder.RunLock(folder))
    if settings.resume is not None:
        _check_goes_on(folder)
        for each in (folder, folder / "checkpoints"):
            remove_unfinished(each)
    check_init(settings.init)
    if ranks.size > 1:
        open_task(settings)


def _check_goes_on(folder: Path) -> None:
    """Refuse to begin again, and to cut what was measured, where a run has ended and its checkpoints are gone."""
    facts = run_folder.read_run(folder)
    status = facts.get("status")
    if status in ("finished", "diverged", "time_limit") and not any((folder / "checkpoints").glob("step-*")):
        raise UserError(
            f"{folder}: the run has ended ({status}, step {facts.get('steps')}), and no checkpoint is left to go on "
            "from; start a new run"
        )


def _train(settings: RunSettings, folder: Path, arms: list[Arm], facts: dict[str, Any]) -> RunResult:
    progress, position, warnings = _restore(settings, folder, arms)
    ranks = arms[0].ranks
    on_first(ranks, lambda: check_position(folder / FILE_NAME, position))
    with contextlib.ExitStack() as stack:
        console = Console(facts, total_steps=settings.train.steps) if ranks.is_first else None
        run = OpenRun(settings, folder, arms, facts, console.warning if console else _silently)
        run.open(stack, console, progress, position)
        for warning in warnings:
            run.warn(warning)
        interruption = stack.enter_context(Interruption())
        outcome = run.loop.run(interruption)
        run.finish(outcome)
    return RunResult(outcome, interruption.signal if outcome == "interrupted" else None)


@dataclass
class OpenRun:
    """A run in training: what is written of it at its start and at its end."""

    settings: RunSettings
    folder: Path
    arms: list[Arm]
    facts: dict[str, Any]  # the content of run.json
    warn: Callable[[str], None]
    loop: Loop = field(init=False)
    mirror: WandbMirror | None = None

    def open(
        self,
        stack: contextlib.ExitStack,
        console: Tracker | None,
        progress: Progress,
        position: int,
    ) -> None:
        """Write what is known beforehand, open the trackers on ``stack`` and make the loop.

        Args:
            console: None on a rank that does not write.
            position: size of the metrics file that ``progress`` belongs to.
        """
        settings, folder = self.settings, self.folder
        metrics: MetricsFile | NoMetricsFile = NoMetricsFile()
        trackers: list[Tracker] = []
        if console is not None:
            folder.mkdir(parents=True, exist_ok=True)
            run_folder.write_config(folder, settings.model_dump(mode="json"), self.facts["config_hash"])
            write_environment(folder, settings.device)
            write_json(folder / run_folder.RUN, self.facts)
            metrics = stack.enter_context(MetricsFile(folder / FILE_NAME, truncate_at=position))
            stack.enter_context(console)
            self.mirror = _open_mirror(stack, settings, folder, self.facts, self.warn)
            trackers = [console, self.mirror] if self.mirror else [console]
        self.loop = Loop(
            self.arms,
            settings.train,
            settings.schedule,
            folder=folder,
            metrics=metrics,
            trackers=trackers,
            progress=progress,
        )

    def finish(self, outcome: Outcome) -> None:
        """Export the models, and enter how the run ended."""
        identical = self.loop.identical
        if outcome != "interrupted":
            _export(self.settings, self.folder, self.arms, self.loop.progress.step)
        finish_facts(self.facts, self.arms, outcome, identical=identical)
        if self.mirror:
            self.mirror.summarise({"status": outcome, "identical": identical, **self.loop.summary()})
        if self.arms[0].ranks.is_first:
            write_json(self.folder / run_folder.RUN, self.facts)
        _warn_of_the_outcome(self.warn, self.arms, identical=identical)


def _silently(text: str) -> None:
    """What ranks that do not write make of a warning."""


def _restore(settings: RunSettings, folder: Path, arms: list[Arm]) -> tuple[Progress, int, list[str]]:
    """Put the newest whole checkpoint into the arms: where it stands, the metrics' size then, and warnings."""
    if settings.resume is None:
        return Progress(), 0, []
    # Damaged ones are removed, and all must agree on one: the first rank looks for it.
    name, state, warnings = on_first(arms[0].ranks, lambda: _newest(folder / "checkpoints"))
    if name is None:
        return Progress(), 0, warnings
    path = folder / "checkpoints" / name
    try:
        for arm in arms:
            arm.status, arm.cause = status_in(state["arms"][arm.name])
            read_arm(path, arm, state["optimizers"][arm.name])
        progress = Progress.from_json(state["progress"])
        if name != checkpoint_name(progress.step):
            raise ValueError(f"it stands at step {progress.step}")
        return progress, whole_number(state["metrics_position"], least=0), warnings
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and arms[0].ranks.size > 1:
            raise  # it may be that another rank is lost
        # Its digests are right: it was written by another version, or by someone who means harm.
        what = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path}: is no checkpoint of this run ({what}); start a new run") from error


def _newest(checkpoints: Path) -> tuple[str | None, dict[str, Any], list[str]]:
    path, state, warnings = load_newest(checkpoints)
    return None if path is None else path.name, state, warnings


def _open_mirror(
    stack: contextlib.ExitStack,
    settings: RunSettings,
    folder: Path,
    facts: dict[str, Any],
    warn: Callable[[str], None],
) -> WandbMirror | None:
    if not isinstance(settings.tracker, WandbSettings):
        return None
    mirror = WandbMirror(
        settings.tracker,
        folder=folder,
        config=settings.model_dump(mode="json"),
        group=facts["group"],
        name=folder.name,
        run_id=facts["run_id"],
        warn=warn,
    )
    return stack.enter_context(mirror)


def _export(settings: RunSettings, folder: Path, arms: list[Arm], step: int) -> None:
    """Save every arm that did not diverge as a folder that transformers' ``from_pretrained`` loads."""
    for arm in arms:
        if arm.status == "diverged":
            continue
        target = folder / "arms" / arm.name / "model"
        model = whole_model(arm, settings, step)
        if not arm.ranks.is_first:
            continue
        if arm.tempered is not None:
            fold_temperature(model)  # a reloaded model knows nothing of the temperature
        with replacing_folder(target) as written, without_progress_bars():
            model.save_pretrained(written)
            arm.task.save_beside(written)


def _warn_of_the_outcome(warn: Callable[[str], None], arms: list[Arm], *, identical: bool) -> None:
    for arm in arms:
        if arm.status == "diverged":
            warn(f"arm {arm.name} diverged: {arm.cause}")
    if identical:
        warn("the two arms have identical weights: they were updated alike, nothing was compared")
