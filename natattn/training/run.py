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
from natattn.tracking.console import Console
from natattn.tracking.metrics_file import MetricsFile
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror
from natattn.training import run_folder
from natattn.training.arms import Arm
from natattn.training.build import build_arms
from natattn.training.checkpoint import load_newest, restore_arm
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


def train(settings: RunSettings, folder: Path, *, group: str | None = None) -> RunResult:
    """Train (or resume) the run of ``settings`` in ``folder``.

    Args:
        group: name of the sweep that the run belongs to.

    Raises: UserError for whatever the user can mend; then a new folder holds nothing of ours.
    """
    settings.check()
    if settings.resume is None and (folder / run_folder.CONFIG).exists():
        raise UserError(f"{folder}: already holds a run; go on with resume={folder}, or choose another folder")
    with run_folder.RunLock(folder):
        check_init(settings.init)
        corpus = pack(prepare(settings.data, settings.tokenizer), settings.data, settings.packing)
        arms, context = build_arms(settings, corpus)
        leaky = check_guards(arms, context, corpus.tokenizer.vocab_size, attention=settings.model.attention)
        facts = {**run_facts(settings, corpus, arms, context, group), "leaky": leaky}
        if settings.resume is not None:
            facts = resumed_facts(facts, run_folder.read_run(folder))
        return _train(settings, folder, corpus, arms, context, facts)


def _train(
    settings: RunSettings,
    folder: Path,
    corpus: TokenizedCorpus,
    arms: list[Arm],
    context: int,
    facts: dict[str, Any],
) -> RunResult:
    progress, position, warnings = _restore(settings, folder, arms)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_config(folder, settings.model_dump(mode="json"), facts["config_hash"])
    run_folder.write_environment(folder, str(settings.device))
    write_json(folder / run_folder.RUN, facts)

    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(MetricsFile(folder / "metrics.jsonl", truncate_at=position))
        console = stack.enter_context(Console(facts, total_steps=settings.train.steps))
        mirror = _open_mirror(stack, settings, folder, facts, console)
        for warning in warnings:
            console.warning(warning)
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
            trackers=[console, mirror] if mirror else [console],
            progress=progress,
        )
        outcome = loop.run(interruption)
        if outcome != "interrupted":
            _export(folder, arms, corpus)
        finish_facts(facts, arms, outcome, identical=loop.identical)
        if mirror:
            mirror.summarise({"status": outcome, "identical": loop.identical, **loop.summary()})
        write_json(folder / run_folder.RUN, facts)
        _warn_of_the_outcome(console, arms, identical=loop.identical)
    return RunResult(outcome, interruption.signal if outcome == "interrupted" else None)


def _restore(settings: RunSettings, folder: Path, arms: list[Arm]) -> tuple[Progress, int, list[str]]:
    """Put the newest whole checkpoint into the arms: where it stands, the metrics' size then, and warnings."""
    if settings.resume is None:
        return Progress(), 0, []
    checkpoint, state, warnings = load_newest(folder / "checkpoints")
    if checkpoint is None:
        return Progress(), 0, warnings
    for arm in arms:
        arm.status, arm.cause = state["arms"][arm.name]["status"], state["arms"][arm.name]["cause"]
        restore_arm(checkpoint, arm, state)
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


def _export(folder: Path, arms: list[Arm], corpus: TokenizedCorpus) -> None:
    """Save every arm that did not diverge as a folder that ``AutoModelForCausalLM.from_pretrained`` loads."""
    for arm in arms:
        if arm.status == "diverged":
            continue
        target = folder / "arms" / arm.name / "model"
        if arm.tempered is not None:
            fold_temperature(arm.model)  # a reloaded model knows nothing of the temperature
        with without_progress_bars():
            arm.model.save_pretrained(target)
        corpus.tokenizer.save(target)


def _warn_of_the_outcome(console: Console, arms: list[Arm], *, identical: bool) -> None:
    for arm in arms:
        if arm.status == "diverged":
            console.warning(f"arm {arm.name} diverged: {arm.cause}")
    if identical:
        console.warning("the two arms have identical weights: they were updated alike, nothing was compared")
