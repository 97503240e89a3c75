"""What a run says when memory does not suffice: where it was, and which settings need less."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from natattn.errors import ResourceError
from natattn.training.progress import TrainSettings

LESS = "activation_checkpointing"
# Of errors that are no OutOfMemoryError: of the CPU's allocator, of CUDA's libraries, of the system.
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_BYTES = re.compile(r"allocate (\d+) bytes")
_WITH_UNIT = re.compile(r"allocate ([\d.]+ [KMGT]iB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of its GPU does not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def told_where(where: str, *, resume_with: str = "", anew: str = "") -> Iterator[None]:
    """Name what ran out of memory inside, and what would need less.

    Raises: ResourceError in place of the error of Python, PyTorch or the system.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = f"{where}: out of memory{_how_much(error)}"
        raise ResourceError(text, resume_with=resume_with, anew=anew) from error


def _how_much(error: BaseException) -> str:
    """What it was that could not be had, where the error says so."""
    if found := _WITH_UNIT.search(str(error)):
        return f" (for {found[1]} more)"
    if found := _BYTES.search(str(error)):
        return f" (for {int(found[1]) / 2**20:,.1f} MiB more)"
    return ""


def less_for_a_step(settings: TrainSettings, models: Sequence[Any], *, divisible: bool) -> dict[str, str]:
    """Settings under which a training step needs less memory, as arguments of ``told_where``.

    Args:
        divisible: whether the loss of a batch is the mean over its parts.
    """
    can = all(getattr(model, "supports_gradient_checkpointing", False) for model in models)
    resume_with = f"train.{LESS}=true" if can and not settings.activation_checkpointing else ""
    batch, parts = settings.batch_size, settings.accumulation_steps
    more = next((count for count in range(parts + 1, batch + 1) if batch % count == 0), None)
    if divisible and more is not None:
        anew = f"train.batch_size={batch} train.accumulation_steps={more} (the same batch, {batch // more} at a time)"
    elif batch > 1 and not divisible:
        anew = f"train.batch_size={batch // 2} (another batch)"
    else:
        anew = "a smaller size="
    return {"resume_with": resume_with, "anew": anew}


def less_for_an_evaluation(settings: TrainSettings) -> dict[str, str]:
    """The same for an evaluation."""
    size = settings.evaluation_batch_size
    return {"anew": f"train.evaluation_batch_size={size // 2}" if size > 1 else "a smaller size="}
