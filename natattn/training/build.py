"""Settings and a corpus → arms: same initial weights, each with its attention type, probe and optimizer."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from natattn.attention.block_energies import BlockEnergies
from natattn.attention.probe import AttentionProbe
from natattn.data import TokenizedCorpus
from natattn.errors import UserError
from natattn.models.attention_types import PublishedAttention, SoftmaxAttention, TemperedAttention
from natattn.models.gpt2 import ModelSettings, build_model, context_of
from natattn.optim.directions import Statistics
from natattn.optim.settings import OptimSettings
from natattn.ranks import Ranks, whole
from natattn.training.arms import Arm
from natattn.training.distributed import SharedForward, shard, shared_forward
from natattn.training.settings import REFERENCE, RunSettings


def build_arms(settings: RunSettings, corpus: TokenizedCorpus, ranks: Ranks | None = None) -> tuple[list[Arm], int]:
    """The reference (where there is one) and the candidate, from the same initial weights; and the context."""
    ranks = ranks or Ranks()
    softmax = SoftmaxAttention(kind="softmax")
    reference = settings.model.model_copy(update={"name": REFERENCE, "attention": softmax})
    candidates = [(settings.candidate_name, settings.model, settings.optim)]
    if isinstance(settings.reference, OptimSettings):
        candidates.insert(0, (REFERENCE, reference, settings.reference))
    arms: list[Arm] = []
    context = 0
    for name, model_settings, optim in candidates:
        model = _initial_model(model_settings, settings, corpus)
        context = context_of(model, settings.size)
        check_enough_text(corpus, context)
        if not _is_sharded(settings, ranks):
            model.to(settings.device)
        if arms and not isinstance(model_settings.attention, PublishedAttention):
            load_weights(model, arms[0].model)
        model_settings.attention.put_on(model)
        settings.stabilisers.put_on(model)
        if settings.train.activation_checkpointing:
            _checkpoint_activations(model)
        if _is_sharded(settings, ranks):
            shard(model, settings.device, ranks)
        arms.append(_build_arm(name, model, model_settings, optim, settings, ranks))
    return arms, context


def _checkpoint_activations(model: Any) -> None:
    """Keep no more of a block than its input, and compute the rest again in the backward pass.

    Raises: UserError for a model that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"train.activation_checkpointing=true: {type(model).__name__} has none; valid: false")
    # Older releases of transformers know the second name alone, newer ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _initial_model(model: ModelSettings, settings: RunSettings, corpus: TokenizedCorpus) -> torch.nn.Module:
    built = build_model(
        model,
        settings.size,
        settings.init,
        vocab_size=corpus.tokenizer.vocab_size,
        end_token_id=corpus.tokenizer.end_token_id,
        seed=settings.seed,
    )
    return built.double() if settings.precision.kind == "fp64" else built


def _is_sharded(settings: RunSettings, ranks: Ranks) -> bool:
    return ranks.size > 1 and settings.train.parallel == "fsdp"


def load_weights(model: torch.nn.Module, source: torch.nn.Module) -> None:
    """Copy the weights of another model of the same architecture, which the ranks may hold in parts."""
    model.load_state_dict({name: whole(tensor) for name, tensor in source.state_dict().items()})


def whole_model(arm: Arm, settings: RunSettings, corpus: TokenizedCorpus, step: int) -> Any:
    """The arm's model in one piece, as of ``step``: itself, or a copy on the CPU where the ranks hold parts of it."""
    if not _is_sharded(settings, arm.ranks):
        return arm.model
    model_settings = settings.model
    if arm.name == REFERENCE:
        model_settings = model_settings.model_copy(update={"attention": SoftmaxAttention(kind="softmax")})
    model = _initial_model(model_settings, settings, corpus)
    load_weights(model, arm.model)
    model_settings.attention.put_on(model)
    settings.stabilisers.put_on(model)
    if arm.tempered is not None:
        arm.tempered.update(model, step, settings.train.steps)
    return model


def _build_arm(
    name: str,
    model: torch.nn.Module,
    model_settings: ModelSettings,
    optim: OptimSettings,
    settings: RunSettings,
    ranks: Ranks,
) -> Arm:
    device = settings.device
    attention = model_settings.attention
    probe: AttentionProbe | None = None
    statistics: Statistics | None = None
    if optim.needs_statistics and isinstance(attention, PublishedAttention):
        statistics = BlockEnergies.of(model, masked_energies_saturate=attention.masked_energies_saturate)
    else:
        statistics = probe = _build_probe(model, settings, optim, ranks)
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    if settings.precision.kind == "bf16":

        def autocast() -> contextlib.AbstractContextManager[Any]:
            return torch.autocast(device.type, dtype=torch.bfloat16)

    try:
        optimizer = optim.build(model, statistics, seed=settings.seed, ranks=ranks)
    except ValueError as error:
        raise UserError(f"optim={optim.name}: does not fit this model: {error}") from error
    shared = shared_forward(model, settings.train.parallel, device) if ranks.size > 1 else SharedForward(model)
    return Arm(
        name=name,
        model=model,
        optimizer=optimizer,
        probe=probe,
        device=device,
        seed=settings.seed,
        autocast=autocast,
        clip_norm=settings.train.clip_norm,
        ranks=ranks,
        forward=torch.compile(shared.call) if settings.train.compile else shared.call,
        without_sync=shared.without_sync,
        tempered=attention if isinstance(attention, TemperedAttention) else None,
        label_shift=settings.model.label_shift,
        clip_energy=settings.stabilisers.qk_clip,
    )


def _build_probe(
    model: torch.nn.Module, settings: RunSettings, optim: OptimSettings, ranks: Ranks
) -> AttentionProbe | None:
    """What the optimizer reads; for QK-clip the exact maximum of every step."""
    clipping = ("maximum",) if settings.stabilisers.qk_clip is not None else ()
    try:
        return optim.build_probe(
            model,
            quantities=clipping,
            exact=clipping,
            ranks=ranks,
            row_count=settings.probe.row_count,
            every=settings.probe.every,
            seed=settings.seed,
        )
    except ValueError as error:
        raise UserError(f"optim={optim.name}: does not fit this model: {error}") from error


def check_enough_text(corpus: TokenizedCorpus, context: int) -> None:
    """Refuse splits shorter than one window.

    Raises: UserError naming the split and both lengths.
    """
    for name in ("train", "validation", "test"):
        split = getattr(corpus, name)
        count = len(split.tokens) if split is not None else context + 1
        if count < context + 1:
            raise UserError(
                f"size.context={context}: longer than the {name} text, which has {count} tokens; "
                f"valid: a context below {count}, or more text"
            )
