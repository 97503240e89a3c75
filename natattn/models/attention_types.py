"""The attention types that `model=` chooses from, and how each is put on a transformers model."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from natattn.attention.attach import attach, set_temperature
from natattn.attention.interface import register
from natattn.attention.modules import NATURAL, NaturalGradient, Tempered, use_implementation
from natattn.attention.temperature import TemperatureSettings
from natattn.errors import UserError
from natattn.settings import Settings


class SoftmaxAttention(Settings):
    """softmax(E) V by PyTorch's fused kernel, not observed."""

    kind: Literal["softmax"]

    def put_on(self, model: Any) -> None:
        """A model is built with this type."""


class NaturalAttention(Settings):
    """The same function, which a probe can observe."""

    kind: Literal["natural"]

    def put_on(self, model: Any) -> None:
        """Choose the attention function by name."""
        register()
        use_implementation(model, NATURAL)


class NaturalGradientAttention(Settings):
    """The same forward; the gradient that reaches queries and keys goes through (F + damping·I)⁻¹ (D2)."""

    kind: Literal["natural_gradient"]
    damping: float = Field(gt=0)

    def put_on(self, model: Any) -> None:
        """Choose the attention function and its damping."""
        attach(model, NaturalGradient(self.damping))


class TemperedAttention(Settings):
    """softmax(E/T) V, T constant, per head, or a function of the step."""

    kind: Literal["tempered"]
    temperature: TemperatureSettings

    def put_on(self, model: Any) -> None:
        """Choose the attention function and the temperature of step 0.

        Raises: UserError where the number of temperatures is not that of the heads.
        """
        initial = torch.as_tensor(self.temperature.temperature(0, 1)).view(-1)
        heads = model.config.num_attention_heads
        if self.temperature.kind == "per_head" and len(initial) != heads:
            raise UserError(f"model.attention.temperature.values: {len(initial)} temperatures for {heads} heads")
        attach(model, Tempered(initial.to(next(model.parameters()).device)))

    def update(self, model: Any, step: int, steps: int) -> None:
        """The temperature of this step."""
        if self.temperature.kind not in ("constant", "per_head"):
            set_temperature(model, self.temperature.temperature(step, steps))


class PublishedAttention(Settings):
    """The author's block and caller: separate projections, PyTorch's default initialisation, no dropout in the blocks.

    As published it is not causal and the labels of both arms are shifted twice, so that its losses are no evidence.
    """

    kind: Literal["published"]
    causal: bool
    masked_energies_saturate: bool  # the mask's −1e9 enters mean|E|, so that the energy factor is 2
    label_shift: int = Field(ge=1)

    def put_on(self, model: Any) -> None:
        """The model was built of these blocks."""


AttentionSettings = Annotated[
    SoftmaxAttention | NaturalAttention | NaturalGradientAttention | TemperedAttention | PublishedAttention,
    Field(discriminator="kind"),
]
