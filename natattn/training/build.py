"""From settings to the task and its arms."""

import contextlib
from functools import partial
from typing import Any

import torch

from natattn.attention.probe import AttentionProbe
from natattn.attention.types.softmax import SoftmaxAttention
from natattn.attention.types.tempered import TemperedAttention
from natattn.data.images import prepare_images, prepare_pairs
from natattn.distributed.ddp import Forward, WithoutSync, replicate
from natattn.distributed.ranks import Ranks, full
from natattn.errors import UserError
from natattn.models.gpt2 import context_of
from natattn.models.settings import ModelSettings
from natattn.optim.directions import Statistics
from natattn.optim.settings import OptimSettings
from natattn.tasks.base import Task
from natattn.tasks.language import LanguageTask, prepare_text
from natattn.tasks.multimodal import MultimodalSettings, MultimodalTask
from natattn.tasks.vision import VisionSettings, VisionTask
from natattn.training.arm import Arm
from natattn.training.settings import REFERENCE, RunSettings


def open_task(settings: RunSettings, *, progress: bool = True) -> Task:
    """Prepare the data of a run and return its task.

    Args:
        settings: checked before.
        progress: show progress bars on standard error if it is a terminal.

    Raises: UserError for data that is missing, damaged or does not fit the model.
    """
    data: Any = settings.data
    shared: Any = {
        "size": settings.size,
        "batch_size": settings.train.batch_size,
        "seed": settings.seed,
        "sampling": settings.train.sampling,
    }
    dtype = torch.float64 if settings.precision.kind == "fp64" else torch.float32
    tokenizer: Any = settings.tokenizer
    match settings.task:
        case VisionSettings() as task:
            pictures = prepare_images(data, progress=progress)
            return VisionTask(pictures, data, task, init=settings.init, dtype=dtype, **shared)
        case MultimodalSettings() as task:
            pairs = prepare_pairs(data, tokenizer, progress=progress)
            return MultimodalTask(pairs, data, task, dtype=dtype, **shared)
    packing: Any = settings.packing
    text = prepare_text(data, tokenizer, packing, progress=progress)
    context = context_of(settings.size, settings.init)
    shift = settings.model.attention.tokens_to_label
    return LanguageTask(text, init=settings.init, context=context, label_shift=shift, **shared)


def build_arms(settings: RunSettings, task: Task, ranks: Ranks | None = None) -> list[Arm]:
    """Build the reference, if there is one, and the candidate, with the same initial weights."""
    ranks = ranks or Ranks()
    softmax = SoftmaxAttention(kind="softmax")
    reference = settings.model.model_copy(update={"name": REFERENCE, "attention": softmax})
    candidates = [(settings.candidate_name, settings.model, settings.optim)]
    if isinstance(settings.reference, OptimSettings):
        candidates.insert(0, (REFERENCE, reference, settings.reference))
    arms: list[Arm] = []
    for name, model_settings, optim in candidates:
        model = _initial_model(model_settings, settings, task)
        if not _is_sharded(settings, ranks):
            model.to(settings.device)
        if arms and not model_settings.attention.own_architecture:
            load_weights(model, arms[0].model)
        model_settings.attention.apply_to(model)
        settings.stabilisers.apply_to(model)
        if settings.train.activation_checkpointing:
            _checkpoint_activations(model)
        if _is_sharded(settings, ranks):
            from natattn.distributed.fsdp import shard

            shard(model, settings.device, ranks)
        arms.append(_build_arm(name, model, task, model_settings, optim, settings, ranks))
    return arms


def _initial_model(model: ModelSettings, settings: RunSettings, task: Task) -> torch.nn.Module:
    built = task.initial_model(model)
    return built.double() if settings.precision.kind == "fp64" else built


def _is_sharded(settings: RunSettings, ranks: Ranks) -> bool:
    return ranks.size > 1 and settings.train.parallel == "fsdp"


def load_weights(model: torch.nn.Module, source: torch.nn.Module) -> None:
    """Copy the weights of another model of the same architecture, which may be sharded."""
    model.load_state_dict({name: full(tensor) for name, tensor in source.state_dict().items()})


def full_model(arm: Arm, settings: RunSettings, step: int) -> Any:
    """Return the arm's model at ``step``, or a copy on the CPU if its weights are sharded."""
    if not _is_sharded(settings, arm.ranks):
        return arm.model
    model_settings = settings.model
    if arm.name == REFERENCE:
        model_settings = model_settings.model_copy(update={"attention": SoftmaxAttention(kind="softmax")})
    model = _initial_model(model_settings, settings, arm.task)
    load_weights(model, arm.model)
    model_settings.attention.apply_to(model)
    settings.stabilisers.apply_to(model)
    if arm.tempered is not None:
        arm.tempered.update(model, step, settings.train.steps)
    return model


def _build_arm(
    name: str,
    model: torch.nn.Module,
    task: Task,
    model_settings: ModelSettings,
    optim: OptimSettings,
    settings: RunSettings,
    ranks: Ranks,
) -> Arm:
    device, attention, clip_energy = settings.device, model_settings.attention, settings.stabilisers.qk_clip
    probe: AttentionProbe | None = None
    statistics: Statistics | None = None
    try:
        if optim.needs_statistics and attention.own_architecture:
            statistics = attention.energy_source(model)
        else:
            clipping = ("maximum",) if clip_energy is not None else ()  # QK-clip needs the exact maximum
            statistics = probe = optim.build_probe(
                model,
                quantities=clipping,
                exact=clipping,
                ranks=ranks,
                row_count=settings.probe.row_count,
                every=settings.probe.every,
                seed=settings.seed,
            )
        scaled = optim.scaled(settings.task.learning_rate_scale)
        optimizer = scaled.build(model, statistics, seed=settings.seed, ranks=ranks)
    except ValueError as error:
        raise UserError(f"optim={optim.name}: does not fit this model: {error}") from error
    forward, without_sync = _forward(model, settings, ranks)
    return Arm(
        name=name,
        model=model,
        task=task,
        optimizer=optimizer,
        probe=probe,
        device=device,
        seed=settings.seed,
        autocast=partial(torch.autocast, device.type, dtype=torch.bfloat16)
        if settings.precision.kind == "bf16"
        else contextlib.nullcontext,
        clip_norm=settings.train.clip_norm,
        ranks=ranks,
        forward=torch.compile(forward) if settings.train.compile else forward,
        without_sync=without_sync,
        tempered=attention if isinstance(attention, TemperedAttention) else None,
        clip_energy=clip_energy,
    )


def _forward(model: torch.nn.Module, settings: RunSettings, ranks: Ranks) -> tuple[Forward, WithoutSync]:
    """Return what training calls in place of the model, and the context in which its backward does not communicate."""
    if ranks.size == 1:
        return model, contextlib.nullcontext
    if _is_sharded(settings, ranks):
        from natattn.distributed.fsdp import without_sync

        return model, partial(without_sync, model)
    return replicate(model, settings.device)


def _checkpoint_activations(model: Any) -> None:
    """Store only the input of each block and recompute the rest in the backward pass.

    Raises: UserError for a model that does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"train.activation_checkpointing=true: not supported by {type(model).__name__}; valid: false")
    # Older releases of transformers have only the second name; newer ones deprecate it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
