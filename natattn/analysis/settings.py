"""The schema of `natattn analyze`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from natattn.config.base import Settings
from natattn.data.text.corpora import DataSettings
from natattn.data.text.tokenizers import TokenizerSettings
from natattn.models.settings import InitSettings, SizeSettings
from natattn.training.devices import DeviceName

Positive = Annotated[float, Field(gt=0)]
ModelSection = Literal[
    "heads", "frozen", "propagated", "sizes", "cascades", "spectra", "fisher", "gradients", "patterns", "hierarchy",
    "theorems",
]  # fmt: skip
RunsSection = Literal["curves", "comparison", "training", "widths", "scaling"]
SectionName = Literal[ModelSection, RunsSection]
NotEmpty = Annotated[str, Field(min_length=1)]


def _several(value: Any) -> Any:
    """One name stands for a list of one."""
    return [value] if isinstance(value, str) else value


class TextSample(Settings):
    """Amount of text to analyse; ``context`` None is the model's own context, at most 256 tokens."""

    sequences: int = Field(ge=2, le=4096)
    context: Annotated[int, Field(ge=8)] | None
    batch_size: int = Field(ge=1)


class TemperatureGrid(Settings):
    """Temperatures of the scans, equally spaced in their logarithm, and the model's own, 1, where it lies between."""

    lowest: Positive
    highest: Positive
    count: int = Field(ge=3, le=200)

    @property
    def values(self) -> list[float]:
        """Ascending; one more than ``count`` where the model's own lies between two of them."""
        ratio = self.highest / self.lowest
        grid = [self.lowest * ratio ** (place / (self.count - 1)) for place in range(self.count)]
        apart = ratio ** (0.01 / (self.count - 1))  # a point as near as that is the model's own
        others = [value for value in grid if not 1 / apart < value < apart]
        return sorted([*others, 1.0]) if self.lowest <= 1 <= self.highest else grid

    @model_validator(mode="after")
    def _is_ordered(self) -> "TemperatureGrid":
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest:g}: must be below highest={self.highest:g}")
        return self


class AnalyzeSettings(Settings):
    """Subject and resolution of an analysis."""

    run: str | None
    runs: Annotated[tuple[NotEmpty, ...], Field(min_length=1), BeforeValidator(_several)] | None
    arm: str | None
    tower: Literal["vision", "text"] | None = None
    baseline: str | None
    indifference: float = Field(ge=0)
    init: InitSettings
    size: SizeSettings
    data: DataSettings
    tokenizer: TokenizerSettings
    seed: int = Field(ge=0, le=2**63 - 1)
    device: DeviceName
    output: str | None
    sections: Annotated[tuple[SectionName, ...], Field(min_length=1), BeforeValidator(_several)] | None
    text: TextSample
    temperatures: TemperatureGrid
    replicas: int = Field(ge=0, le=10_000)
    law_replicas: int = Field(ge=0, le=10_000)
    processes: int = Field(ge=1, le=256)
    thresholds: tuple[Positive, ...] = Field(min_length=1)
