"""Which device a command computes on."""

from typing import Annotated

import torch
from pydantic import Field

from natattn.errors import UserError

DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


def chosen_device(name: str, key: str = "device") -> torch.device:
    """The device of that name; auto prefers CUDA.

    Args:
        key: of the configuration, for the message.

    Raises: UserError for a CUDA device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"{key}={name}: {count or 'no'} CUDA device{'s' * (count != 1)} here; valid: auto, cpu")
    return device
