"""Out-of-memory and disk errors as one line that names the cause and the command to continue with."""

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from natattn.errors import ResourceError
from natattn.storage.atomic import is_of_the_disk, what_to_mend
from natattn.training.run_folder import CONFIG, read_run

if TYPE_CHECKING:
    from natattn.training.settings import RunSettings, TrainSettings

# Out-of-memory errors that are plain RuntimeErrors: of the CPU allocator, the CUDA libraries and the system.
_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_BYTES = re.compile(r"allocate (\d+) bytes")
_WITH_UNIT = re.compile(r"allocate ([\d.]+ [KMGT]iB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that the machine or its GPU is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


@contextlib.contextmanager
def explain_out_of_memory(where: str, *, resume_with: str = "", anew: str = "") -> Iterator[None]:
    """Turn an out-of-memory error in the block into a ResourceError.

    Args:
        where: names the block in the message.
        resume_with: overrides with which the resumed run needs less memory.
        anew: overrides with which a new run needs less memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        amount = ""
        if found := _WITH_UNIT.search(str(error)):
            amount = f" (for {found[1]} more)"
        elif found := _BYTES.search(str(error)):
            amount = f" (for {int(found[1]) / 2**20:,.1f} MiB more)"
        raise ResourceError(f"{where}: out of memory{amount}", resume_with=resume_with, anew=anew) from error


def advice_for_step(settings: "TrainSettings", models: Sequence[Any], *, divisible: bool) -> dict[str, str]:
    """Return settings with which a training step needs less memory, as arguments of ``explain_out_of_memory``.

    Args:
        divisible: whether the loss of a batch is the mean over its slices.
    """
    can_checkpoint = all(getattr(model, "supports_gradient_checkpointing", False) for model in models)
    resume_with = "train.activation_checkpointing=true"
    if not can_checkpoint or settings.activation_checkpointing:
        resume_with = ""
    batch, slices = settings.batch_size, settings.accumulation_steps
    more = next((count for count in range(slices + 1, batch + 1) if batch % count == 0), None)
    if divisible and more is not None:
        anew = f"train.batch_size={batch} train.accumulation_steps={more} (the same batch, {batch // more} at a time)"
    elif batch > 1 and not divisible:
        anew = f"train.batch_size={batch // 2} (another batch)"
    else:
        anew = "a smaller size="
    return {"resume_with": resume_with, "anew": anew}


def advice_for_evaluation(settings: "TrainSettings") -> dict[str, str]:
    """Return settings with which an evaluation needs less memory."""
    size = settings.evaluation_batch_size
    return {"anew": f"train.evaluation_batch_size={size // 2}" if size > 1 else "a smaller size="}


@contextlib.contextmanager
def explain_failure(settings: "RunSettings", folder: Path, resumed: str) -> Iterator[None]:
    """Turn out-of-memory and disk errors in the block into one line with the command to resume.

    Args:
        resumed: value of ``resume=`` that continues the run.

    Raises: ResourceError in their place.
    """
    try:
        with explain_out_of_memory(f"size={settings.size.name}", anew="a smaller size="):
            yield
    except ResourceError as error:
        anew = f"; or start a new run with {error.anew}" if error.anew else ""
        also = " and " if error.mend else "; "
        hint = resume_hint(folder, f"{resumed} {error.resume_with}".rstrip())
        raise ResourceError(f"{error}{also}{hint}{anew}") from error
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        where = f"{error.filename or folder}: {error.strerror}; {what_to_mend(error)}"
        raise ResourceError(f"{where} and {resume_hint(folder, resumed)}") from error


def resume_hint(folder: Path, resumed: str) -> str:
    """Return the advice for a run that ended early."""
    if not any((path / CONFIG).exists() for path in (folder, *folder.glob("seed*"))):
        return "start it again: there is nothing to resume yet"
    if read_run(folder).get("status") in ("finished", "diverged"):
        return f"see its result: natattn report {shlex.quote(str(folder))}"
    return f"resume with natattn train resume={resumed}"
