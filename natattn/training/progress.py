"""How long a run trains, and where it stands."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import Field

from natattn.config.base import Settings
from natattn.storage.documents import finite_number, whole_number
from natattn.training.devices import DeviceName

Status = Literal["running", "diverged"]  # of an arm
Outcome = Literal["finished", "interrupted", "time_limit", "diverged"]
Parallel = Literal["ddp", "fsdp"]


class TrainSettings(Settings):
    """How long, with what batches, and how often to evaluate and to checkpoint."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=2**24)
    accumulation_steps: int = Field(ge=1)
    sampling: Literal["random", "epochs"]
    clip_norm: float | None = Field(gt=0)
    evaluate_every: int = Field(ge=1)
    evaluation_batch_size: int = Field(ge=1, le=2**24)
    checkpoint_every: int = Field(ge=1)
    keep_checkpoints: int = Field(ge=1)
    log_every: int = Field(ge=1)
    max_seconds: float | None = Field(gt=0)
    compile: bool
    device: DeviceName
    parallel: Parallel = "ddp"
    activation_checkpointing: bool = False
    deterministic: bool = False


@dataclass
class Progress:
    """Where a run stands: what a checkpoint must hold beside weights and optimizer states."""

    step: int = 0
    evaluated_step: int = -1  # the last step whose evaluation is in the metrics file
    best_loss: float = math.inf  # the candidate's validation loss at the best checkpoint
    seconds: float = 0.0  # wall seconds of training so far, over all sittings
    arm_seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As stored in a checkpoint."""
        best = self.best_loss if math.isfinite(self.best_loss) else None
        return {**vars(self), "best_loss": best}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Progress":
        """The inverse of ``to_json``.

        Raises: ValueError, KeyError or TypeError for what ``to_json`` does not write.
        """
        best = content["best_loss"]
        return cls(
            step=whole_number(content["step"], least=0),
            evaluated_step=whole_number(content["evaluated_step"], least=-1),
            best_loss=math.inf if best is None else finite_number(best),
            seconds=finite_number(content["seconds"], least=0),
            arm_seconds={str(arm): finite_number(value, least=0) for arm, value in content["arm_seconds"].items()},
        )


def status_in(content: dict[str, Any]) -> tuple[Status, str | None]:
    """Status and cause of an arm, as stored in a checkpoint. Raises: ValueError or KeyError for what is neither."""
    status, cause = content["status"], content["cause"]
    if status not in ("running", "diverged") or not (cause is None or isinstance(cause, str)):
        raise ValueError(f"an arm is {status!r} because of {cause!r}")
    return cast(Status, status), cause
