"""What a direction is shown of a parameter, and which direction that is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from natattn.optim.directions.base import Place
from natattn.optim.partition import HIDDEN_ROLES, ROLES, ParameterView, Role

DIRECTION_KEYS = (*ROLES, "hidden", "default")


@dataclass(frozen=True)
class Slot:
    """What a direction is shown of a parameter, with the direction's key and its rate relative to the group's."""

    view: ParameterView
    direction: str
    rate: float
    parts: tuple[ParameterView, ...]  # the matrices in it, each with a role of its own

    @cached_property
    def place(self) -> Place:
        """Where it stands in the model."""
        view = self.view
        return Place(view.role, view.layer, view.module, view.heads, view.parameter.ndim)

    @property
    def shape(self) -> torch.Size:
        """Of the view, whole."""
        return self.view.of(torch.empty(self.view.parameter.shape, device="meta")).shape


def key_of(table: Mapping[str, Any], role: Role) -> str | None:
    """The most specific key of a table that holds for a role: the role itself, ``hidden``, ``default``."""
    candidates = (role, "hidden", "default") if role in HIDDEN_ROLES else (role, "default")
    return next((key for key in candidates if key in table), None)
