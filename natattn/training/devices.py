"""Which device a command computes on."""

import os
import re
from typing import Annotated

import torch
from pydantic import Field

from natattn.errors import UserError

# Two digits: PyTorch takes numbers from 256 on for others.
_NAME = r"^(auto|cpu|cuda(:\d{1,2})?)$"
DeviceName = Annotated[str, Field(pattern=_NAME)]


def check_name(name: str) -> None:
    """Raises: UserError for what names no device, or one that nothing can be trained on here or elsewhere."""
    if re.fullmatch(_NAME, name) is None:
        raise UserError(f"device={name}: no such device; valid: auto, cpu, cuda, cuda:N")


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
