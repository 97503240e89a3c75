"""Settings of a model: its size, attention type and initial weights."""

import os
from typing import Annotated, Any, Literal

from pydantic import Field

from natattn.attention.types.registry import AttentionSettings
from natattn.config.base import Name, Positive, Settings
from natattn.errors import UserError


class SizeSettings(Settings):
    """Width, depth and context of a model; ``None`` is the pretrained model's own value."""

    name: Name
    n_layer: Annotated[int, Field(ge=1, le=10_000)] | None
    n_embd: Annotated[int, Field(ge=1, le=2**20)] | None
    n_head: Annotated[int, Field(ge=1, le=2**20)] | None
    context: Annotated[int, Field(ge=2, le=2**24)] | None
    n_inner: Annotated[int, Field(ge=1, le=2**24)] | None = None  # hidden units of the MLP; None: four times n_embd
    initializer_range: Positive | None  # standard deviation of the initial weights

    def resolved(self) -> dict[str, Any]:
        """Return the sizes of a new model, all but ``n_inner`` and ``context`` with a value.

        Raises: UserError naming the key without a value, or for a number of heads that does not divide the width.
        """
        values = self.model_dump(exclude={"name"})
        for key, value in values.items():
            if value is None and key not in ("n_inner", "context"):
                raise UserError(f"size.{key}: no value; size={self.name} is for init=pretrained, choose another size")
        n_embd, n_head = values["n_embd"], values["n_head"]
        if n_embd % n_head:
            raise UserError(
                f"size.n_head={n_head}: does not divide size.n_embd={n_embd}; "
                f"valid: a divisor, such as {nearest_divisor(n_embd, n_head)}"
            )
        return values


class ModelSettings(Settings):
    """The attention type of a model, and its dropout."""

    name: Name
    dropout: float = Field(ge=0, lt=1)
    attention: AttentionSettings


class RandomInit(Settings):
    """GPT-2's random initialisation, from the run's seed."""

    kind: Literal["random"]


class PretrainedInit(Settings):
    """The weights of a transformers folder or hub name."""

    kind: Literal["pretrained"]
    path: str


InitSettings = Annotated[RandomInit | PretrainedInit, Field(discriminator="kind")]


def check_size(size: SizeSettings, init: RandomInit | PretrainedInit) -> None:
    """Refuse impossible sizes, and weights that the memory of this machine cannot hold, before anything is built.

    Raises: UserError naming the key.
    """
    if not isinstance(init, RandomInit):
        return
    sizes = size.resolved()
    width = sizes["n_embd"]
    inner = sizes["n_inner"] or 4 * width
    weights = sizes["n_layer"] * (4 * width**2 + 2 * width * inner) + width * (sizes["context"] or 0)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * weights > memory:
        raise UserError(
            f"size: n_layer={sizes['n_layer']} n_embd={width} n_inner={inner} context={sizes['context']}: the weights "
            f"of one model are {4 * weights / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f} GiB; "
            "valid: smaller ones"
        )


def nearest_divisor(width: int, heads: int) -> int:
    """Return the divisor of ``width`` that is nearest to ``heads``."""
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: (abs(d - heads), d))
