"""One run from typed settings to a finished folder: data, arms, guards, loop, exported models."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from natattn.attention.attach import fold_temperature
from natattn.attention.probe import AttentionProbe
from natattn.data import (
    Batches,
    TokenizedCorpus,
    bigram_entropy,
    held_out_bigram_entropy,
    prepare,
    unigram_entropy,
)
from natattn.errors import UserError
from natattn.models.attention_types import SoftmaxAttention, TemperedAttention
from natattn.models.gpt2 import ModelSettings, build_model, context_of, without_progress_bars
from natattn.optim.optimizer import OptimSettings
from natattn.tracking.console import Console
from natattn.tracking.metrics_file import MetricsFile
from natattn.tracking.settings import WandbSettings
from natattn.tracking.wandb import WandbMirror
from natattn.training import run_folder
from natattn.training.arms import Arm, weights_hash
from natattn.training.checkpoint import load_newest, restore_arm, write_json
from natattn.training.guards import check_causality, check_label_shift
from natattn.training.interruption import Interruption
from natattn.training.loop import Loop, Outcome, Progress
from natattn.training.settings import CHANGEABLE, REFERENCE, RunSettings


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
        corpus = prepare(settings.data, settings.tokenizer)
        arms, context = build_arms(settings, corpus)
        for arm in arms:
            check_causality(arm, context, corpus.tokenizer.vocab_size)
            check_label_shift(arm, corpus.tokenizer.vocab_size)
        check_enough_text(corpus, context)
        facts = _facts(folder, settings, corpus, arms, context)
        return _train(settings, folder, group, corpus, arms, context, facts)


def build_arms(settings: RunSettings, corpus: TokenizedCorpus) -> tuple[list[Arm], int]:
    """The reference (where there is one) and the candidate, from the same initial weights; and the context."""
    softmax = SoftmaxAttention(kind="softmax")
    reference = settings.model.model_copy(update={"name": REFERENCE, "attention": softmax})
    candidates = [(settings.candidate_name, settings.model, settings.optim)]
    if isinstance(settings.reference, OptimSettings):
        candidates.insert(0, (REFERENCE, reference, settings.reference))
    arms: list[Arm] = []
    context = 0
    for name, model_settings, optim in candidates:
        model = build_model(
            model_settings,
            settings.size,
            settings.init,
            vocab_size=corpus.tokenizer.vocab_size,
            end_token_id=corpus.tokenizer.end_token_id,
            seed=settings.seed,
        )
        context = context_of(model, settings.size)
        model.to(settings.device)
        if arms:
            model.load_state_dict(arms[0].model.state_dict())
        model_settings.attention.put_on(model)
        arms.append(_build_arm(name, model, model_settings, optim, settings))
    return arms, context


def _build_arm(
    name: str, model: torch.nn.Module, model_settings: ModelSettings, optim: OptimSettings, settings: RunSettings
) -> Arm:
    device = settings.device
    probe = None
    if optim.needs_statistics:
        probe = AttentionProbe(
            model, row_count=settings.probe.row_count, every=settings.probe.every, seed=settings.seed
        )
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    if settings.precision.kind == "bf16":

        def autocast() -> contextlib.AbstractContextManager[Any]:
            return torch.autocast(device.type, dtype=torch.bfloat16)

    return Arm(
        name=name,
        model=model,
        optimizer=optim.build(model, probe),
        probe=probe,
        device=device,
        seed=settings.seed,
        autocast=autocast,
        clip_norm=settings.train.clip_norm,
        compiled=torch.compile(model) if settings.train.compile else None,
        tempered=model_settings.attention if isinstance(model_settings.attention, TemperedAttention) else None,
    )


def check_enough_text(corpus: TokenizedCorpus, context: int) -> None:
    """Refuse splits shorter than one window.

    Raises: UserError naming the split and both lengths.
    """
    for name in ("train", "validation", "test"):
        split = getattr(corpus, name)
        count = len(split.tokens) if split is not None else context + 1
        if count < context + 1:
            raise UserError(
                f"size.context={context}: longer than the {name} text of {corpus.name}, which has {count} tokens; "
                f"valid: a context below {count}, or more text"
            )


def _train(
    settings: RunSettings,
    folder: Path,
    group: str | None,
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
        mirror = _open_mirror(stack, settings, folder, group, facts, console)
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
        _finish_facts(facts, arms, outcome, identical=loop.identical)
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


def _warn_of_the_outcome(console: Console, arms: list[Arm], *, identical: bool) -> None:
    for arm in arms:
        if arm.status == "diverged":
            console.warning(f"arm {arm.name} diverged: {arm.cause}")
    if identical:
        console.warning("the two arms have identical weights: they were updated alike, nothing was compared")


def _open_mirror(
    stack: contextlib.ExitStack,
    settings: RunSettings,
    folder: Path,
    group: str | None,
    facts: dict[str, Any],
    console: Console,
) -> WandbMirror | None:
    if not isinstance(settings.tracker, WandbSettings):
        return None
    mirror = WandbMirror(
        settings.tracker,
        folder=folder,
        config=settings.model_dump(mode="json"),
        group=group,
        name=folder.name,
        run_id=facts["run_id"],
        warn=console.warning,
    )
    return stack.enter_context(mirror)


def _facts(
    folder: Path, settings: RunSettings, corpus: TokenizedCorpus, arms: list[Arm], context: int
) -> dict[str, Any]:
    """The content of run.json: what a reader of the metrics needs to know beside them."""
    config = settings.model_dump(mode="json")
    optims = {arm.name: settings.optim.name for arm in arms}
    models = {arm.name: settings.model.name for arm in arms}
    if isinstance(settings.reference, OptimSettings):
        optims[REFERENCE], models[REFERENCE] = settings.reference.name, REFERENCE
    digest = run_folder.config_hash(config, without=CHANGEABLE)
    run_id = hashlib.sha256(f"{folder.resolve().name}/{digest}".encode()).hexdigest()[:12]
    tokens, vocab_size = corpus.validation.tokens, corpus.tokenizer.vocab_size
    return {
        "reference": REFERENCE if len(arms) > 1 else None,
        "candidate": arms[-1].name,
        "arms": {
            arm.name: {
                "optim": optims[arm.name],
                "model": models[arm.name],
                "parameters": sum(p.numel() for p in arm.model.parameters()),
                "status": "running",
                "cause": None,
            }
            for arm in arms
        },
        "status": "running",
        "steps": settings.train.steps,
        "tokens_per_step": settings.train.batch_size * context,
        "seed": settings.seed,
        "config_hash": digest,
        "run_id": run_id,
        "initial_weights_hash": weights_hash(arms[0].model),
        "identical": False,
        "data": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "vocab_size": vocab_size,
            "validation_tokens": len(tokens),
            "validation_bytes": corpus.validation.byte_count,
            "unigram_entropy": unigram_entropy(tokens, vocab_size),
            "bigram_entropy": held_out_bigram_entropy(corpus.train.tokens, tokens, vocab_size),
            "plug_in_bigram_entropy": bigram_entropy(tokens, vocab_size),
            "floor": corpus.floor,
        },
        "device": str(settings.device),
        "label": f"{settings.model.name} · {settings.optim.name} · {settings.size.name}",
        "leaky": [],
    }


def _finish_facts(facts: dict[str, Any], arms: list[Arm], outcome: Outcome, *, identical: bool) -> None:
    facts["status"] = outcome
    facts["identical"] = identical
    for arm in arms:
        status = "interrupted" if outcome == "interrupted" else "finished"
        facts["arms"][arm.name].update(status=status if arm.active else arm.status, cause=arm.cause)


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
