"""Settings → a task, and its arms: same initial weights, each with its attention type, probe and optimizer."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from natattn.attention.probe import AttentionProbe
from natattn.attention.types.softmax import SoftmaxAttention
from natattn.attention.types.tempered import TemperedAttention
from natattn.data.images import prepare_images, prepare_pairs
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
from natattn.training.arms import Arm
from natattn.training.distributed import SharedForward, shard, shared_forward
from natattn.training.settings import REFERENCE, RunSettings


def open_task(settings: RunSettings, *, progress: bool = True) -> Task:
    """The task of a run with its data prepared; ``settings`` have been checked.

    Args:
        progress: a bar on standard error for what takes long, where that is a terminal.

    Raises: UserError for all that is wrong with the data, or does not fit the model.
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
    """The reference (where there is one) and the candidate, from the same initial weights."""
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
            shard(model, settings.device, ranks)
        arms.append(_build_arm(name, model, task, model_settings, optim, settings, ranks))
    return arms


def _checkpoint_activations(model: Any) -> None:
    """Keep no more of a block than its input, and compute the rest again in the backward pass.

    Raises: UserError for a model that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"train.activation_checkpointing=true: {type(model).__name__} has none; valid: false")
    # Older releases of transformers know the second name alone, newer ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _initial_model(model: ModelSettings, settings: RunSettings, task: Task) -> torch.nn.Module:
    built = task.initial_model(model)
    return built.double() if settings.precision.kind == "fp64" else built


def _is_sharded(settings: RunSettings, ranks: Ranks) -> bool:
    return ranks.size > 1 and settings.train.parallel == "fsdp"


def load_weights(model: torch.nn.Module, source: torch.nn.Module) -> None:
    """Copy the weights of another model of the same architecture, which the ranks may hold in parts."""
    model.load_state_dict({name: full(tensor) for name, tensor in source.state_dict().items()})


def whole_model(arm: Arm, settings: RunSettings, step: int) -> Any:
    """The arm's model in one piece, as of ``step``: itself, or a copy on the CPU where the ranks hold parts of it."""
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
    device = settings.device
    attention = model_settings.attention
    probe: AttentionProbe | None = None
    statistics: Statistics | None = None
    with _fitting(optim):
        if optim.needs_statistics and attention.own_architecture:
            statistics = attention.energy_source(model)
        else:
            statistics = probe = _build_probe(model, settings, optim, ranks)
        scaled = optim.scaled(settings.task.learning_rate_scale)
        optimizer = scaled.build(model, statistics, seed=settings.seed, ranks=ranks)
    in_bfloat16 = partial(torch.autocast, device.type, dtype=torch.bfloat16)
    shared = shared_forward(model, settings.train.parallel, device) if ranks.size > 1 else SharedForward(model)
    return Arm(
        name=name,
        model=model,
        task=task,
        optimizer=optimizer,
        probe=probe,
        device=device,
        seed=settings.seed,
        autocast=in_bfloat16 if settings.precision.kind == "bf16" else contextlib.nullcontext,
        clip_norm=settings.train.clip_norm,
        ranks=ranks,
        forward=torch.compile(shared.call) if settings.train.compile else shared.call,
        without_sync=shared.without_sync,
        tempered=attention if isinstance(attention, TemperedAttention) else None,
        clip_energy=settings.stabilisers.qk_clip,
    )


def _build_probe(
    model: torch.nn.Module, settings: RunSettings, optim: OptimSettings, ranks: Ranks
) -> AttentionProbe | None:
    """What the optimizer reads; for QK-clip the exact maximum of every step."""
    clipping = ("maximum",) if settings.stabilisers.qk_clip is not None else ()
    return optim.build_probe(
        model,
        quantities=clipping,
        exact=clipping,
        ranks=ranks,
        row_count=settings.probe.row_count,
        every=settings.probe.every,
        seed=settings.seed,
    )


@contextlib.contextmanager
def _fitting(optim: OptimSettings) -> Iterator[None]:
    """Around what an optimizer asks of a model. Raises: UserError for the ValueError that says what the model lacks."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"optim={optim.name}: does not fit this model: {error}") from error
