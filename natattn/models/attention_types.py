"""The attention types that `model=` chooses from, and how each is put on a transformers model."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from natattn.attention.attach import attach, set_temperature
from natattn.attention.interface import register
from natattn.attention.modules import NATURAL, NaturalGradient, Tempered, use_implementation
from natattn.attention.stabilisers import Stabilisers, attach_stabilisers, check_clippable, saved_stabilisers
from natattn.attention.temperature import (
    ConstantTemperature,
    CriticalTemperature,
    PerHeadTemperature,
    TemperatureSettings,
    critical_temperatures,
)
from natattn.config.base import Positive, Settings
from natattn.errors import UserError


class StabiliserSettings(Settings):
    """What keeps the energies of both arms bounded; nothing by default (``natattn.attention.stabilisers``).

    The defaults are those of ``stabilisers=none``, for the configurations of runs that are older than the group.
    """

    qk_norm: bool = False
    qk_clip: Positive | None = None
    softcap: Positive | None = None

    @property
    def of_the_forward_pass(self) -> Stabilisers:
        """Those that change the function which attention computes."""
        return Stabilisers(self.qk_norm, self.softcap)

    def check(self, attention: "AttentionSettings") -> None:
        """Refuse what would have no effect or could not be saved.

        Raises: UserError naming the keys.
        """
        active = [f"stabilisers.{key}={value}" for key, value in self if value]
        if not active:
            return
        if isinstance(attention, PublishedAttention):
            raise UserError(f"{active[0]}: the blocks of model=published take none; valid: stabilisers=none")
        if self.qk_clip is not None and len(active) > 1:
            raise UserError(f"{active[0]} {active[1]}: the energies are bounded already; give one of them")
        if isinstance(attention, TemperedAttention) and self.of_the_forward_pass:
            raise UserError(
                f"{active[0]}: a temperature cannot be folded into the weights of such a model; "
                "valid: stabilisers.qk_clip, or another model"
            )

    def apply_to(self, model: Any) -> None:
        """A model whose attention type has been chosen gets them.

        Raises: UserError for a model that has its own, or one whose weights cannot be clipped.
        """
        try:
            before, now = saved_stabilisers(model.config), self.of_the_forward_pass
            if before and before != now:
                raise UserError(
                    f"stabilisers: the pretrained model was trained with others; valid: "
                    f"stabilisers.qk_norm={str(before.query_key_norm).lower()} "
                    f"stabilisers.softcap={'null' if before.softcap is None else before.softcap}"
                )
            if now:
                attach_stabilisers(model, now)
            if self.qk_clip is not None:
                check_clippable(model)
        except ValueError as error:
            raise UserError(f"stabilisers: {error}") from None


class SoftmaxAttention(Settings):
    """softmax(E) V by PyTorch's fused kernel, not observed."""

    kind: Literal["softmax"]

    def apply_to(self, model: Any) -> None:
        """A model is built with this type."""


class NaturalAttention(Settings):
    """The same function, which a probe can observe."""

    kind: Literal["natural"]

    def apply_to(self, model: Any) -> None:
        """Choose the attention function by name."""
        register()
        use_implementation(model, NATURAL)


class NaturalGradientAttention(Settings):
    """The same forward; the gradient that reaches queries and keys goes through (F + damping·I)⁻¹ (D2)."""

    kind: Literal["natural_gradient"]
    damping: float = Field(gt=0, le=1e30)  # beyond, 1 + damping leaves float32

    def apply_to(self, model: Any) -> None:
        """Choose the attention function and its damping."""
        attach(model, NaturalGradient(self.damping))


class TemperedAttention(Settings):
    """softmax(E/T) V, T constant, per head, or a function of the step."""

    kind: Literal["tempered"]
    temperature: TemperatureSettings

    def apply_to(self, model: Any) -> None:
        """Choose the attention function and the temperature of step 0.

        Raises: UserError where the number of temperatures is not that of the heads.
        """
        attach(model, Tempered(self._initial(model).to(next(model.parameters()).device)))

    def update(self, model: Any, step: int, steps: int) -> None:
        """The temperature of this step."""
        if not isinstance(self.temperature, ConstantTemperature | PerHeadTemperature | CriticalTemperature):
            set_temperature(model, self.temperature.temperature(step, steps))

    def _initial(self, model: Any) -> Tensor:
        # Both towers of a pair have the run's size.
        config = getattr(model.config, "vision_config", model.config)
        heads = config.num_attention_heads
        schedule = self.temperature
        if schedule.kind == "critical":
            try:
                return critical_temperatures(schedule.exponents, config.hidden_size, heads, schedule.initial)
            except ValueError as error:
                raise UserError(f"model.attention.temperature.exponents: {error}") from None
        initial = torch.as_tensor(schedule.temperature(0, 1)).view(-1)
        if schedule.kind == "per_head" and len(initial) != heads:
            raise UserError(f"model.attention.temperature.values: {len(initial)} temperatures for {heads} heads")
        return initial


class PublishedAttention(Settings):
    """The author's block and caller: separate projections, PyTorch's default initialisation, no dropout in the blocks.

    As published it is not causal and the labels of both arms are shifted twice, so that its losses are no evidence.
    """

    kind: Literal["published"]
    causal: bool
    masked_energies_saturate: bool  # the mask's −1e9 enters mean|E|, so that the energy factor is 2
    label_shift: int = Field(ge=1, le=2)

    def apply_to(self, model: Any) -> None:
        """The model was built of these blocks."""


AttentionSettings = Annotated[
    SoftmaxAttention | NaturalAttention | NaturalGradientAttention | TemperedAttention | PublishedAttention,
    Field(discriminator="kind"),
]
