"""How long a run trains, and where it stands."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from natattn.settings import Settings
from natattn.training.devices import DeviceName

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
        """The inverse of ``to_json``."""
        best = content["best_loss"]
        return cls(**{**content, "best_loss": math.inf if best is None else best})
