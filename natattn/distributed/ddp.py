"""Data parallelism with whole models (DistributedDataParallel)."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]
WithoutSync = Callable[[], contextlib.AbstractContextManager[Any]]


def replicate(model: nn.Module, device: torch.device) -> tuple[Forward, WithoutSync]:
    """Return a forward pass whose backward averages the gradients over the ranks, and a context that delays that.

    In the context, backward passes accumulate local gradients.
    """
    wrapped = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index or 0] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    return wrapped, wrapped.no_sync
