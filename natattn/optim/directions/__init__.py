"""Directions: rules from gradients, state and attention statistics to updates, one per file.

``AnyDirection`` is their union, told apart by ``kind``. To add a direction, write its file and add it to the union.
"""

from typing import Annotated

from pydantic import Field

from natattn.optim.directions.adam import Adam
from natattn.optim.directions.attention_fisher import AttentionFisher
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaled
from natattn.optim.directions.momentum import Momentum
from natattn.optim.directions.orthogonal import Orthogonal
from natattn.optim.directions.soap import Soap
from natattn.optim.directions.whitened import Whitened

AnyDirection = Annotated[
    Adam | AttentionFisher | EnergyScaled | Momentum | Orthogonal | Soap | Whitened, Field(discriminator="kind")
]

__all__ = ["AnyDirection", "Direction", "Statistics"]
