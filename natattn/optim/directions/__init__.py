"""Directions: pure functions (gradient, state, statistics) → update, one per file.

``DirectionSettings`` is the union of their schemas, told apart by ``kind``; each one builds its direction. To add
one: write its file and add its settings to the union.
"""

from typing import Annotated

from pydantic import Field

from natattn.optim.directions.adam import AdamSettings
from natattn.optim.directions.attention_fisher import AttentionFisherSettings
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaledSettings
from natattn.optim.directions.momentum import MomentumSettings
from natattn.optim.directions.orthogonal import OrthogonalSettings
from natattn.optim.directions.soap import SoapSettings
from natattn.optim.directions.whitened import WhitenedSettings

DirectionSettings = Annotated[
    AdamSettings
    | AttentionFisherSettings
    | EnergyScaledSettings
    | MomentumSettings
    | OrthogonalSettings
    | SoapSettings
    | WhitenedSettings,
    Field(discriminator="kind"),
]

__all__ = ["Direction", "DirectionSettings", "Statistics"]
