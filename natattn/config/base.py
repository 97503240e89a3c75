"""The base of every schema: a frozen, typed object that a composed configuration is turned into.

YAML carries the values and the schema carries the types and ranges, so fields have no defaults: a value that is
written nowhere is an error, not a guess.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of an exponential average
# What becomes a part of a path.
Name = Annotated[str, Field(pattern=r"^[\w-]+$", max_length=100)]


class Settings(BaseModel):
    """Frozen settings of one component; unknown keys, wrong types and values out of range are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
