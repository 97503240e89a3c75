"""The device that a command computes on, and deterministic computation on it."""

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from natattn.config.messages import first_line
from natattn.errors import UserError

# At most two digits: PyTorch wraps device indices from 256 on.
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")]
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")  # the values for which cuBLAS documents reproducible results


def chosen_device(name: str, key: str = "device") -> torch.device:
    """Return the device of that name; "auto" prefers CUDA, and each rank of torchrun takes its own GPU.

    Args:
        key: configuration key to name in the error.

    Raises: UserError for a CUDA device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = os.environ.get("LOCAL_RANK")  # set by torchrun
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" and local_rank else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"{key}={name}: {count or 'no'} CUDA device{'s' * (count != 1)} here; valid: auto, cpu")
    return device


@contextlib.contextmanager
def deterministic(enabled: bool, device: torch.device) -> Iterator[None]:
    """Allow only deterministic algorithms in the block if ``enabled``; restore PyTorch's switches afterwards.

    Raises: UserError for an operation without a deterministic algorithm on the device, or if cuBLAS was initialized
        before with another workspace configuration.
    """
    if not enabled:
        yield
        return
    if device.type == "cuda":
        _fix_cublas()
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        cause = first_line(error).split(", but you set")[0]
        raise UserError(f"train.deterministic=true: not possible on {device}: {cause}; valid: false") from error
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        cudnn.deterministic, cudnn.benchmark = flags


def _fix_cublas() -> None:
    """Set cuBLAS's workspace size. cuBLAS reads it at first use, so it stays set for the process."""
    value = os.environ.get(CUBLAS)
    if value in _CUBLAS_VALUES:
        return
    if value is None and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        os.environ[CUBLAS] = _CUBLAS_VALUES[0]
        return
    why = f"{CUBLAS}={value}" if value is not None else f"CUDA was used before in this process, without {CUBLAS}"
    raise UserError(f"train.deterministic=true: {why}; valid: export {CUBLAS}={_CUBLAS_VALUES[0]}")
