"""Settings of `tracker=offline|online|off`."""

from typing import Annotated, Literal

from pydantic import Field

from natattn.config.base import Settings


class WandbSettings(Settings):
    """A mirror of the metrics file in Weights & Biases.

    If null, `group` is the name of the sweep and `name` that of the run. `timeout_seconds` limits the wait for wandb to
    start and the wait for it to finish.
    """

    kind: Literal["wandb"]
    mode: Literal["offline", "online"]
    project: str = Field(min_length=1)
    entity: str | None
    group: str | None
    name: str | None
    tags: tuple[str, ...]
    timeout_seconds: float = Field(gt=0)


class OffSettings(Settings):
    """No mirror: only the metrics file is written."""

    kind: Literal["off"]


TrackerSettings = Annotated[WandbSettings | OffSettings, Field(discriminator="kind")]
