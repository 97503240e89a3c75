"""The schema of `natattn train`: one typed object for everything that is composed."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from natattn.data import DataSettings, PackingSettings, TokenizerSettings
from natattn.errors import UserError
from natattn.models.attention_types import PublishedAttention, StabiliserSettings, TemperedAttention
from natattn.models.gpt2 import InitSettings, ModelSettings, PretrainedInit, SizeSettings, check_size
from natattn.optim.settings import OptimSettings
from natattn.settings import Settings
from natattn.tracking.settings import TrackerSettings
from natattn.training.devices import chosen_device
from natattn.training.progress import TrainSettings
from natattn.training.schedule import ConstantSettings, ScheduleSettings

REFERENCE = "standard"
# What may differ between a run and its resumption: how it is watched and how long it may take, not what it computes.
CHANGEABLE = frozenset(
    {
        "tracker",
        "resume",
        "train.max_seconds",
        "train.keep_checkpoints",
        "train.parallel",
        "train.activation_checkpointing",
    }
)


class NoReference(Settings):
    """Only the candidate is trained."""

    name: Literal["none"]


class PrecisionSettings(Settings):
    """Arithmetic of the forward pass; fp64 is of everything."""

    kind: Literal["fp32", "bf16", "fp64"]


class ProbeSettings(Settings):
    """How attention is observed in training."""

    row_count: int | None = Field(ge=1)
    every: int = Field(ge=1)


class RunSettings(Settings):
    """Everything that `natattn train` composes."""

    model: ModelSettings
    size: SizeSettings
    optim: OptimSettings
    reference: OptimSettings | NoReference
    data: DataSettings
    tokenizer: TokenizerSettings
    packing: PackingSettings
    stabilisers: StabiliserSettings = StabiliserSettings()
    schedule: ScheduleSettings
    precision: PrecisionSettings
    tracker: TrackerSettings
    init: InitSettings
    train: TrainSettings
    probe: ProbeSettings
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    seeds: Annotated[int, Field(ge=1)] | None = None
    resume: str | None

    def check(self) -> None:
        """Refuse impossible combinations, before anything is built.

        Raises: UserError naming the keys.
        """
        check_size(self.size, self.init)
        if self.seeds is not None:
            self._check_seeds()
        self.stabilisers.check(self.model.attention)
        if self.optim.reads_attention and not self.model.observable:
            raise UserError(
                f"optim={self.optim.name}: reads attention, which model={self.model.name} does not show; "
                "valid: model=natural"
            )
        if self.optim.factors is not None and isinstance(self.model.attention, PublishedAttention):
            raise UserError(f"optim={self.optim.name}: keeps factors, which the blocks of model=published do not show")
        if isinstance(self.reference, OptimSettings) and self.reference.reads_attention:
            raise UserError(f"reference={self.reference.name}: the standard arm's attention is not observed")
        pretrained = isinstance(self.init, PretrainedInit)
        if pretrained and getattr(self.tokenizer, "path", None) != self.init.path:  # type: ignore[union-attr]
            raise UserError(
                f"tokenizer.kind={self.tokenizer.kind}: not the vocabulary that the pretrained model at "
                "init.path has learned; valid: tokenizer=pretrained"
            )
        if self.train.batch_size % self.train.accumulation_steps:
            raise UserError(
                f"train.batch_size={self.train.batch_size}: not divisible by "
                f"train.accumulation_steps={self.train.accumulation_steps}"
            )
        if isinstance(self.schedule, ConstantSettings) and self.schedule.warmup_steps >= self.train.steps:
            raise UserError(
                f"schedule.warmup_steps={self.schedule.warmup_steps}: the run ends before; "
                f"valid: below train.steps={self.train.steps}"
            )
        chosen_device(self.train.device, "train.device")

    def _check_seeds(self) -> None:
        """Refuse what several seeds cannot do as one computation."""
        start = f"seeds={self.seeds}: "
        if self.resume is not None:
            raise UserError(start + "cannot be resumed together; each seed is: resume=FOLDER/seed0, without seeds")
        if isinstance(self.model.attention, PublishedAttention):
            raise UserError(
                f"{start}model={self.model.name}: its blocks cannot be stacked; valid: a sweep: -m seed=0,1,…"
            )
        if self.model.dropout > 0:
            raise UserError(
                f"{start}model.dropout={self.model.dropout:g}: together the seeds would not drop what they drop alone; "
                "valid: model.dropout=0, or a sweep: -m seed=0,1,…"
            )
        if self.train.compile:
            raise UserError(start + "train.compile=true: is not compiled; valid: train.compile=false")
        if self.train.activation_checkpointing:
            raise UserError(start + "train.activation_checkpointing=true: the stacked pass keeps all; valid: false")
        if self.seed + self.seeds > 2**63:  # type: ignore[operator]
            raise UserError(f"{start}seed={self.seed}: the last seed would not be below 2**63")

    def of_each_seed(self) -> "list[RunSettings]":
        """The settings of the separate runs that ``seeds`` stands for."""
        seeds = range(self.seed, self.seed + (self.seeds or 1))
        return [self.model_copy(update={"seed": seed, "seeds": None}) for seed in seeds]

    @property
    def candidate_name(self) -> str:
        """The candidate arm's name: its attention type, with the optimizer's where the reference has the same."""
        if self.model.name == REFERENCE and isinstance(self.reference, OptimSettings):
            return f"{REFERENCE}_{self.optim.name}"
        return self.model.name

    @property
    def device(self) -> torch.device:
        """The device of the run; auto prefers CUDA."""
        return chosen_device(self.train.device, "train.device")


def changeable(settings: RunSettings) -> frozenset[str]:
    """Keys that may differ when a run of these settings is resumed; its length only where the schedule ignores it."""
    attention = settings.model.attention
    length_matters = not isinstance(settings.schedule, ConstantSettings) or (
        isinstance(attention, TemperedAttention) and attention.temperature.kind in ("linear", "cosine")
    )
    return CHANGEABLE if length_matters else CHANGEABLE | {"train.steps"}
