"""`train.deterministic=true`: the same machine gives the same bits, for every optimizer and attention."""

import contextlib
import os
from collections.abc import Iterator

import torch

from natattn.config.messages import first_line
from natattn.errors import UserError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")  # those under which cuBLAS promises the same bits


@contextlib.contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Inside it PyTorch takes deterministic algorithms alone, where that is ``wanted``; afterwards all is as before.

    Raises: UserError for an operation that has no deterministic algorithm on the device, or where cuBLAS cannot be
        told any more.
    """
    if not wanted:
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
    """Have cuBLAS work in buffers of a fixed size. It reads that when it is first used, so it stays for the process."""
    value = os.environ.get(CUBLAS)
    if value in _CUBLAS_VALUES:
        return
    if value is None and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        os.environ[CUBLAS] = _CUBLAS_VALUES[0]
        return
    why = f"{CUBLAS}={value}" if value is not None else f"CUDA was used before in this process, without {CUBLAS}"
    raise UserError(f"train.deterministic=true: {why}; valid: export {CUBLAS}={_CUBLAS_VALUES[0]}")
