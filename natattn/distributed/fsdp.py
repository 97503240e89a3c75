"""Data parallelism with sharded models (fully_shard, FSDP2).

The core imports this file in one place, when ``train.parallel=fsdp`` builds an arm.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from natattn.distributed.ranks import Ranks
from natattn.errors import UserError


def shard(model: Any, device: torch.device, ranks: Ranks) -> None:
    """Shard every parameter over the ranks, block by block and in place. Call it before building an optimizer.

    Raises: UserError for a model that does not name its blocks.
    """
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    if not blocks:
        raise UserError(f"train.parallel=fsdp: {type(model).__name__} does not name its blocks; valid: ddp")
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, mesh=mesh)
    # By default the root's parameters stay gathered after an evaluation, and a checkpoint would store them so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


@contextlib.contextmanager
def without_sync(model: Any) -> Iterator[None]:
    """Accumulate local gradients in the block instead of averaging them over the ranks."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
