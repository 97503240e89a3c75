"""Heads sorted into levels by how far they attend: local, middle, global (paper F, 4.2)."""

import torch
from pydantic import Field
from torch import Tensor

from natattn.config.base import Positive, Settings
from natattn.optim.directions.base import State

LEVELS = 3


class Levels(Settings):
    """Damping and step multiplier of the local, the middle and the global heads.

    Heads are sorted into terciles of their layer by mean attention distance. ``sort_every`` counts steps between
    sortings; a head changes its level only when its rank is past the tercile by more than ``hysteresis`` ranks.
    """

    damping: tuple[Positive, Positive, Positive]
    multipliers: tuple[Positive, Positive, Positive]
    sort_every: int = Field(ge=1)
    hysteresis: float = Field(ge=0)


def levels_of(levels: Levels, attention_distance_H: Tensor, heads: int, state: State) -> Tensor:
    """The level of every head, int64 [heads], kept in ``state["levels"]`` between sortings.

    Grouped-query keys have the mean distance of the query heads that share them.
    """
    step = int(state["host_step"])
    if "levels" in state and step % levels.sort_every:
        return state["levels"]
    distance = attention_distance_H.view(heads, -1).mean(1)
    rank = distance.argsort().argsort()
    place = (rank + 0.5) * LEVELS / heads  # the level is the integer part
    sorted_levels = place.long().clamp_max(LEVELS - 1)
    if "levels" in state:
        margin = levels.hysteresis * LEVELS / heads
        old = state["levels"]
        stays = (place > old - margin) & (place < old + 1 + margin)
        sorted_levels = torch.where(stays, old, sorted_levels)
    state["levels"] = sorted_levels
    return sorted_levels
