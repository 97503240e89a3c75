"""One run from typed settings to a finished folder: data, arms, guards, loop, exported models."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natattn.attention.attach import fold_temperature
from natattn.data import Batches, TokenizedCorpus, pack, prepare
from natattn.errors import UserError
from natattn.files import write_json
from natattn.models.gpt2 import check_init, without_progress_bars
from natattn.ranks import Ranks
from natattn.tracking.console import Console
from natattn.tracking.metrics_file import MetricsFile, NoMetricsFile
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror
from natattn.training import run_folder
from natattn.training.arm_state import read_arm
from natattn.training.arms import Arm
from natattn.training.build import build_arms, whole_model
from natattn.training.checkpoint import load_newest
from natattn.training.distributed import check_ranks, on_first
from natattn.training.facts import finish_facts, resumed_facts, run_facts
from natattn.training.guards import check_guards
from natattn.training.interruption import Interruption
from natattn.training.loop import Loop, Outcome, Progress
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
        on_first(ranks, lambda: _begin(stack, settings, folder, ranks))
        corpus = pack(prepare(settings.data, settings.tokenizer), settings.data, settings.packing)
        arms, context = build_arms(settings, corpus, ranks)
        leaky = check_guards(arms, context, corpus.tokenizer.vocab_size, attention=settings.model.attention)
        facts = {**run_facts(settings, corpus, arms, context, group), "leaky": leaky}
        if settings.resume is not None:
            facts = resumed_facts(facts, run_folder.read_run(folder))
        return _train(settings, folder, corpus, arms, context, facts)


def _begin(stack: contextlib.ExitStack, settings: RunSettings, folder: Path, ranks: Ranks) -> None:
    """What one process does before anything is built: lock the folder, and prepare the text, which is kept."""
    if settings.resume is None and (folder / run_folder.CONFIG).exists():
        raise UserError(f"{folder}: already holds a run; go on with resume={folder}, or choose another folder")
    stack.enter_context(run_folder.RunLock(folder))
    check_init(settings.init)
    if ranks.size > 1:
        prepare(settings.data, settings.tokenizer)


def _train(
    settings: RunSettings,
    folder: Path,
    corpus: TokenizedCorpus,
    arms: list[Arm],
    context: int,
    facts: dict[str, Any],
) -> RunResult:
    progress, position, warnings = _restore(settings, folder, arms)
    ranks = arms[0].ranks
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_config(folder, settings.model_dump(mode="json"), facts["config_hash"])
        run_folder.write_environment(folder, str(settings.device))
        write_json(folder / run_folder.RUN, facts)

    with contextlib.ExitStack() as stack:
        metrics: MetricsFile | NoMetricsFile = NoMetricsFile()
        watchers: list[Console | WandbMirror] = []
        if ranks.is_first:
            metrics = stack.enter_context(MetricsFile(folder / "metrics.jsonl", truncate_at=position))
            watchers = _watchers(stack, settings, folder, facts, warnings)
        interruption = stack.enter_context(Interruption())
        loop = Loop(
            arms,
            settings.train,
            settings.schedule,
            Batches(corpus.train, settings.train.batch_size, context, settings.seed, settings.train.sampling),
            corpus.validation,
            corpus.test,
            context=context,
            folder=folder,
            metrics=metrics,
            trackers=watchers,
            progress=progress,
        )
        outcome = loop.run(interruption)
        if outcome != "interrupted":
            _export(settings, folder, arms, corpus, progress.step)
        finish_facts(facts, arms, outcome, identical=loop.identical)
        for watcher in watchers:
            if isinstance(watcher, WandbMirror):
                watcher.summarise({"status": outcome, "identical": loop.identical, **loop.summary()})
            else:
                _warn_of_the_outcome(watcher, arms, identical=loop.identical)
        if ranks.is_first:
            write_json(folder / run_folder.RUN, facts)
    return RunResult(outcome, interruption.signal if outcome == "interrupted" else None)


def _watchers(
    stack: contextlib.ExitStack, settings: RunSettings, folder: Path, facts: dict[str, Any], warnings: list[str]
) -> list[Console | WandbMirror]:
    """Who shows the run while it lasts."""
    console = stack.enter_context(Console(facts, total_steps=settings.train.steps))
    mirror = _open_mirror(stack, settings, folder, facts, console)
    for warning in warnings:
        console.warning(warning)
    return [console, mirror] if mirror else [console]


def _restore(settings: RunSettings, folder: Path, arms: list[Arm]) -> tuple[Progress, int, list[str]]:
    """Put the newest whole checkpoint into the arms: where it stands, the metrics' size then, and warnings."""
    if settings.resume is None:
        return Progress(), 0, []
    found: list[str] = []
    on_first(arms[0].ranks, lambda: found.extend(load_newest(folder / "checkpoints")[2]))  # damaged ones are removed
    checkpoint, state, _ = load_newest(folder / "checkpoints")
    warnings = found
    if checkpoint is None:
        return Progress(), 0, warnings
    for arm in arms:
        arm.status, arm.cause = state["arms"][arm.name]["status"], state["arms"][arm.name]["cause"]
        read_arm(checkpoint, arm, state["optimizers"][arm.name])
    return Progress.from_json(state["progress"]), state["metrics_position"], warnings


def _open_mirror(
    stack: contextlib.ExitStack,
    settings: RunSettings,
    folder: Path,
    facts: dict[str, Any],
    console: Console,
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
        warn=console.warning,
    )
    return stack.enter_context(mirror)


def _export(settings: RunSettings, folder: Path, arms: list[Arm], corpus: TokenizedCorpus, step: int) -> None:
    """Save every arm that did not diverge as a folder that ``AutoModelForCausalLM.from_pretrained`` loads."""
    for arm in arms:
        if arm.status == "diverged":
            continue
        target = folder / "arms" / arm.name / "model"
        model = whole_model(arm, settings, corpus, step)
        if not arm.ranks.is_first:
            continue
        if arm.tempered is not None:
            fold_temperature(model)  # a reloaded model knows nothing of the temperature
        with without_progress_bars():
            model.save_pretrained(target)
        corpus.tokenizer.save(target)


def _warn_of_the_outcome(console: Console, arms: list[Arm], *, identical: bool) -> None:
    for arm in arms:
        if arm.status == "diverged":
            console.warning(f"arm {arm.name} diverged: {arm.cause}")
    if identical:
        console.warning("the two arms have identical weights: they were updated alike, nothing was compared")
