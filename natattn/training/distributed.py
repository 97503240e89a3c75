"""Several processes that train one run: how they share a model, and agree."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from natattn.distributed.ranks import Ranks
from natattn.errors import UserError
from natattn.training.progress import Parallel
from natattn.training.settings import RunSettings

Result = TypeVar("Result")


def on_first(ranks: Ranks, action: Callable[[], Result]) -> Result:
    """Have the first rank do something before the others go on, and tell them the result, which is JSON content.

    Raises: UserError on every rank where the first one does.
    """
    result, own = None, None
    if ranks.is_first:
        try:
            result = action()
        except UserError as error:
            own = error
    result, message = ranks.from_first([result, None if own is None else str(own)])
    if message is not None:
        raise own or UserError(message)
    return cast(Result, result)


def check_ranks(settings: RunSettings, ranks: Ranks) -> None:
    """Raises: UserError where the ranks cannot have equal parts of a batch, or the run is one that cannot be shared."""
    if ranks.size == 1:
        return
    batch_size, accumulation_steps = settings.train.batch_size, settings.train.accumulation_steps
    if settings.task.kind == "multimodal":
        raise UserError(
            "task=multimodal: every pair is compared with all others of its batch, which the ranks would not see; "
            "run it without torchrun"
        )
    if settings.model.attention.own_architecture:
        raise UserError(f"model={settings.model.name}: every rank would see its own energies; run it without torchrun")
    if settings.train.device.startswith("cuda:"):
        raise UserError(
            f"train.device={settings.train.device}: every rank needs a GPU of its own; valid: auto, cuda, cpu"
        )
    if settings.train.parallel == "fsdp" and settings.stabilisers.qk_clip is not None:
        raise UserError("stabilisers.qk_clip: needs whole query and key weights; valid: train.parallel=ddp")
    if batch_size % (ranks.size * accumulation_steps):
        raise UserError(
            f"train.batch_size={batch_size}: cannot be divided equally among {ranks.size} ranks × "
            f"{accumulation_steps} accumulation steps; valid: a multiple of {ranks.size * accumulation_steps}"
        )


@dataclass(frozen=True)
class SharedForward:
    """What training calls in place of a model that several ranks train.

    Attributes:
        call: the forward pass, whose backward pass leaves the mean gradient of all ranks.
        without_sync: inside it backward passes add up gradients that the ranks do not share yet.
    """

    call: Callable[..., Any]
    without_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def shard(model: nn.Module, device: torch.device, ranks: Ranks) -> None:
    """Cut every parameter into one part per rank (FSDP2), block by block, in place; before an optimizer is built.

    Raises: UserError for a model that does not say what its blocks are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = set(getattr(model, "_no_split_modules", None) or ())
    if not blocks:
        raise UserError(f"train.parallel=fsdp: {type(model).__name__} does not name its blocks; valid: ddp")
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, mesh=mesh)
    # Otherwise the outermost parameters stay whole after an evaluation, and a checkpoint would find them so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def shared_forward(model: Any, parallel: Parallel, device: torch.device) -> SharedForward:
    """The forward pass of a model that ``shard`` has cut, or of one that every rank has whole."""
    if parallel == "fsdp":

        @contextlib.contextmanager
        def without_sync() -> Iterator[None]:
            model.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                model.set_requires_gradient_sync(True)

        return SharedForward(model, without_sync)
    wrapped = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index or 0] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    return SharedForward(wrapped, wrapped.no_sync)
