"""Which device a command computes on."""

import os
from typing import Annotated

import torch
from pydantic import Field

from natattn.errors import UserError

# Two digits: PyTorch takes numbers from 256 on for others.
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")]


def chosen_device(name: str, key: str = "device") -> torch.device:
    """The device of that name; auto prefers CUDA, and of several GPUs a rank takes its own.

    Args:
        key: of the configuration, for the message.

    Raises: UserError for a CUDA device that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = os.environ.get("LOCAL_RANK")  # of a process that torchrun has started
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" and local_rank else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"{key}={name}: {count or 'no'} CUDA device{'s' * (count != 1)} here; valid: auto, cpu")
    return device
