"""The schema of `natattn train`: the whole configuration of a run as one typed object."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field

from natattn.attention.stabilisers import StabiliserSettings
from natattn.config.base import Settings
from natattn.config.compose import compose, plain_values, refuse_secrets, validated
from natattn.data import DataSettings, PackingSettings, TokenizerSettings
from natattn.data.images import ImageDataSettings, PairDataSettings
from natattn.errors import UserError
from natattn.models.settings import InitSettings, ModelSettings, PretrainedInit, SizeSettings, check_size
from natattn.optim.settings import OptimSettings
from natattn.tasks import LanguageSettings, TaskSettings
from natattn.tracking.settings import TrackerSettings
from natattn.training.devices import DeviceName, chosen_device
from natattn.training.schedule import ConstantSettings, ScheduleSettings

REFERENCE = "standard"
# Keys that may change when a run is resumed: they affect monitoring, time limits and memory, not results.
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


def _kinds(union: Any) -> tuple[str, ...]:
    """Return the values of ``kind`` in a discriminated union."""
    return tuple(get_args(choice.model_fields["kind"].annotation)[0] for choice in get_args(get_args(union)[0]))


DATA_KINDS = {
    "language": _kinds(DataSettings),
    "vision": _kinds(ImageDataSettings),
    "multimodal": _kinds(PairDataSettings),
}
_READS = {
    ("tokenizer", True): "reads text",
    ("tokenizer", False): "reads no text",
    ("packing", True): "packs its text",
    ("packing", False): "packs no text",
}


class NoReference(Settings):
    """No reference: only the candidate is trained."""

    name: Literal["none"]


class PrecisionSettings(Settings):
    """Precision of the forward pass; fp64 applies to weights and optimizer too."""

    kind: Literal["fp32", "bf16", "fp64"]


class NoText(Settings):
    """No tokenizer, or no packing: the task does not read text, or does not pack it."""

    kind: Literal["none"]


class ProbeSettings(Settings):
    """Observation of attention during training.

    Attributes:
        row_count: number of query rows sampled per sequence; None for all.
        every: observe every this many steps.
    """

    row_count: int | None = Field(ge=1)
    every: int = Field(ge=1)


class TrainSettings(Settings):
    """Length of the training, batches, and how often to evaluate, log and save."""

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
    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    deterministic: bool = False


class RunSettings(Settings):
    """Everything that `natattn train` composes.

    Fields with a default were added later: configurations of runs that were published before lack them.
    """

    task: TaskSettings = LanguageSettings(kind="language")
    model: ModelSettings
    size: SizeSettings
    optim: OptimSettings
    reference: OptimSettings | NoReference
    data: Annotated[DataSettings | ImageDataSettings | PairDataSettings, Field(discriminator="kind")]
    tokenizer: Annotated[TokenizerSettings | NoText, Field(discriminator="kind")]
    packing: Annotated[PackingSettings | NoText, Field(discriminator="kind")]
    stabilisers: StabiliserSettings = StabiliserSettings()
    schedule: ScheduleSettings
    precision: PrecisionSettings
    tracker: TrackerSettings
    init: InitSettings
    train: TrainSettings
    probe: ProbeSettings
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    seeds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    resume: str | None

    def check(self) -> None:
        """Check the combination of settings before anything is built.

        Raises: UserError naming the keys.
        """
        check_size(self.size, self.init)
        self._check_task()
        if self.seeds is not None:
            self._check_seeds()
        self.stabilisers.check(self.model.attention)
        pretrained = isinstance(self.init, PretrainedInit)
        if self.optim.reads_attention and not self.model.attention.observable:
            raise UserError(
                f"optim={self.optim.name}: needs attention statistics, which model={self.model.name} does not record. "
                "Use model=natural, or optim=adamw for a plain baseline."
            )
        if self.optim.factors is not None and self.model.attention.own_architecture:
            raise UserError(f"optim={self.optim.name}: keeps factors, which the blocks of model=published do not show")
        if isinstance(self.reference, OptimSettings) and self.reference.reads_attention:
            raise UserError(
                f"reference={self.reference.name}: needs attention statistics, which the standard arm does not record"
            )
        if self.task.kind == "language" and pretrained and getattr(self.tokenizer, "path", None) != self.init.path:  # type: ignore[union-attr]
            raise UserError(
                f"tokenizer.kind={self.tokenizer.kind}: not the vocabulary of the pretrained model at "
                "init.path; valid: tokenizer=pretrained"
            )
        if self.train.batch_size % self.train.accumulation_steps:
            raise UserError(
                f"train.batch_size={self.train.batch_size}: not divisible by "
                f"train.accumulation_steps={self.train.accumulation_steps}"
            )
        if isinstance(self.schedule, ConstantSettings) and self.schedule.warmup_steps >= self.train.steps:
            raise UserError(
                f"schedule.warmup_steps={self.schedule.warmup_steps}: the run ends before the warm-up; "
                f"valid: below train.steps={self.train.steps}"
            )
        chosen_device(self.train.device, "train.device")

    def _check_task(self) -> None:
        """Check that the data and the parts of the run fit the task."""
        task = self.task.kind
        if self.data.kind not in DATA_KINDS[task]:
            other = next(name for name, kinds in DATA_KINDS.items() if self.data.kind in kinds)
            raise UserError(
                f"data.kind={self.data.kind}: is for task={other}; valid for task={task}: {', '.join(DATA_KINDS[task])}"
            )
        needs = {"tokenizer": task != "vision", "packing": task == "language"}
        for key, needed in needs.items():
            kind = getattr(self, key).kind
            if (kind == "none") == needed:
                valid = "another" if needed else f"{key}=none"
                raise UserError(f"{key}.kind={kind}: task={task} {_READS[key, needed]}; valid: {valid}")
        if task != "language" and self.model.attention.own_architecture:
            raise UserError(f"model={self.model.name}: is a language model; valid for task={task}: model=natural")
        self._check_length()
        if task == "multimodal":
            if isinstance(self.init, PretrainedInit):
                raise UserError("init=pretrained: not supported by task=multimodal, which builds both towers")
            if self.train.accumulation_steps > 1:
                raise UserError(
                    f"train.accumulation_steps={self.train.accumulation_steps}: the loss compares every pair with all "
                    "others of its batch, which cannot be divided; valid for task=multimodal: 1"
                )

    def _check_length(self) -> None:
        """Check that there is a context if and only if the task needs one."""
        if self.task.kind == "vision" and self.size.context is not None:
            raise UserError(
                f"size.context={self.size.context}: an image has one token per patch; valid for task=vision: null"
            )
        if self.task.kind == "language" and self.size.context is None and not isinstance(self.init, PretrainedInit):
            raise UserError(f"size.context: no value; size={self.size.name} needs one, such as size.context=128")

    def _check_seeds(self) -> None:
        """Check that the run can be trained with several seeds as one computation."""
        start = f"seeds={self.seeds}: "
        if self.task.kind != "language":
            raise UserError(f"{start}task={self.task.kind}: its models cannot be stacked; use a sweep: -m seed=0,1,…")
        if self.resume is not None:
            raise UserError(start + "cannot be resumed together; resume each seed: resume=FOLDER/seed0, without seeds=")
        if self.model.attention.own_architecture:
            raise UserError(f"{start}model={self.model.name}: its blocks cannot be stacked; use a sweep: -m seed=0,1,…")
        if self.model.dropout > 0:
            raise UserError(
                f"{start}model.dropout={self.model.dropout:g}: stacked seeds would drop other units than alone; "
                "valid: model.dropout=0, or a sweep: -m seed=0,1,…"
            )
        if self.train.compile:
            raise UserError(start + "train.compile=true: stacked seeds cannot be compiled; valid: train.compile=false")
        if self.train.activation_checkpointing:
            raise UserError(start + "train.activation_checkpointing=true: not supported by stacked seeds; valid: false")
        if self.seed + self.seeds > 2**63:  # type: ignore[operator]
            raise UserError(f"{start}seed={self.seed}: the last seed must be below 2**63")

    def per_seed(self) -> "list[RunSettings]":
        """Return the settings of the separate runs that ``seeds`` stands for."""
        seeds = range(self.seed, self.seed + (self.seeds or 1))
        return [self.model_copy(update={"seed": seed, "seeds": None}) for seed in seeds]

    @property
    def candidate_name(self) -> str:
        """Name of the candidate arm: its attention type, and its optimizer if the reference has the same type."""
        if self.model.name == REFERENCE and isinstance(self.reference, OptimSettings):
            return f"{REFERENCE}_{self.optim.name}"
        return self.model.name

    @property
    def device(self) -> torch.device:
        """Device of the run; "auto" prefers CUDA."""
        return chosen_device(self.train.device, "train.device")


def changeable(settings: RunSettings) -> frozenset[str]:
    """Return the keys that may change when a run is resumed; train.steps only if schedules do not depend on it."""
    length_matters = not isinstance(settings.schedule, ConstantSettings) or settings.model.attention.depends_on_length
    return CHANGEABLE if length_matters else CHANGEABLE | {"train.steps"}


def compose_run(overrides: Sequence[str]) -> RunSettings:
    """Compose conf/train.yaml with overrides into checked settings.

    Raises: UserError with key, value and what is valid.
    """
    return run_settings(plain_values(compose(overrides)))


def run_settings(values: dict[str, Any]) -> RunSettings:
    """Turn a composed or saved configuration into checked settings.

    Raises: UserError with key, value and what is valid.
    """
    settings = validated(values, RunSettings)
    settings.check()
    refuse_secrets(settings)
    return settings
