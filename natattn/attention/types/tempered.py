"""Attention with a temperature, softmax(E/T): constant, per head, or a function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from natattn.attention.critical_exponents import Exponents, critical_temperatures
from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import (
    PARAMETERS_ATTRIBUTE,
    STABILISERS_ATTRIBUTE,
    AttentionLayer,
    attach,
    attention_layers,
    detach,
    projection,
    query_norm_name,
    scale_heads,
)
from natattn.attention.patterns import explicit_attention
from natattn.attention.types.base import (
    AttentionType,
    Output,
    as_output,
    attention_function,
    fused_attention,
    observed_inputs,
    parameters_of,
)
from natattn.config.base import Positive, Settings
from natattn.errors import UserError


@dataclass(frozen=True, eq=False)
class Tempered:
    """The parameter that ``attach`` sets on a layer: T > 0 of softmax(E/T).

    Attributes:
        temperature: a number is free, since it is folded into the scaling of the kernel. A tensor, [H] for a
            temperature for each head or [1] for one that ``set_temperature`` changes in place, costs one product with
            the queries.
    """

    implementation: ClassVar[str] = "tempered"
    temperature: float | Tensor

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.temperature)
        if not bool((values.gt(0) & values.isfinite()).all()):
            raise ValueError(f"temperature={self.temperature}: must be greater than 0 and finite")


@attention_function(Tempered.implementation)
def tempered_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Output:
    """Compute softmax(E/T) V. A probe observes E without T, and the pattern with it."""
    temperature = parameters_of(module, Tempered).temperature
    inputs = observed_inputs(module, query, key, attention_mask, options, temperature)
    if inputs.softcap is not None:  # T acts after the cap and cannot be folded into the scaling
        return as_output(explicit_attention(inputs, value, dropout=options.get("dropout", 0.0)))
    return fused_attention(module, _at_unit_temperature(inputs), value, options)


def _at_unit_temperature(inputs: AttentionInputs) -> AttentionInputs:
    """Return inputs with the same pattern at T = 1: scores and biases divided by T."""
    per_head = inputs.broadcast_temperature
    mask, bias = inputs.attention_mask, inputs.position_bias
    if mask is not None and mask.dtype != torch.bool:
        mask = (mask / per_head).to(mask.dtype).clamp_min(torch.finfo(mask.dtype).min)
    if bias is not None:
        bias = (bias / per_head).to(bias.dtype)
    inputs = replace(inputs, attention_mask=mask, position_bias=bias, temperature=1.0)
    if isinstance(per_head, Tensor):
        # The product is rounded once, to the queries' dtype; 1/T itself is not.
        return replace(inputs, query=(inputs.query / per_head).to(inputs.query.dtype))
    return replace(inputs, scaling=inputs.scaling / per_head)


class ConstantTemperature(Settings):
    """A constant temperature for all heads, layers and steps."""

    kind: Literal["constant"]
    value: Positive


class PerHeadTemperature(Settings):
    """A temperature for each head, the same in every layer and step."""

    kind: Literal["per_head"]
    values: tuple[Positive, ...] = Field(min_length=1)


class CriticalTemperature(Settings):
    """T_c(k) = T_0 (d/768)^(−α_k) for every head k of a model of width d, the same in every layer and step."""

    kind: Literal["critical"]
    initial: Positive  # T_0
    exponents: Exponents  # α: one for all heads, one for each, or the path of an analysis.json that has them


class InverseSquareRootTemperature(Settings):
    """τ₀/√t with t = step + 1, so that the first step has τ₀; never below ``floor``."""

    kind: Literal["inverse_sqrt"]
    initial: Positive
    floor: Positive

    def at(self, step: int, steps: int) -> float:
        """Return T at ``step`` (0-based); ``steps`` has no effect."""
        return max(self.floor, self.initial / math.sqrt(step + 1))


class LinearTemperature(Settings):
    """A straight line from ``initial`` at the first step to ``final`` at the last."""

    kind: Literal["linear"]
    initial: Positive
    final: Positive

    def at(self, step: int, steps: int) -> float:
        """Return T at ``step`` of ``steps`` (0-based)."""
        return self.initial + (self.final - self.initial) * _progress(step, steps)


class CosineTemperature(Settings):
    """Half a cosine from ``initial`` at the first step to ``final`` at the last."""

    kind: Literal["cosine"]
    initial: Positive
    final: Positive

    def at(self, step: int, steps: int) -> float:
        """Return T at ``step`` of ``steps`` (0-based)."""
        return self.final + (self.initial - self.final) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))


def _progress(step: int, steps: int) -> float:
    """Return 0 at the first step, 1 at the last and after it."""
    return min(1.0, step / max(1, steps - 1))


class TemperedAttention(AttentionType):
    """softmax(E/T) V, T constant, per head, or a function of the step."""

    folds_into_queries: ClassVar[bool] = True

    kind: Literal["tempered"]
    temperature: Annotated[
        ConstantTemperature
        | PerHeadTemperature
        | CriticalTemperature
        | InverseSquareRootTemperature
        | LinearTemperature
        | CosineTemperature,
        Field(discriminator="kind"),
    ]

    @property
    def depends_on_length(self) -> bool:
        """Return whether the temperature at a step depends on the number of steps of the run."""
        return isinstance(self.temperature, LinearTemperature | CosineTemperature)

    def apply_to(self, model: Any) -> None:
        """Choose the attention function and the temperature of step 0.

        Raises: UserError if the number of temperatures or exponents is not the number of heads.
        """
        # Both towers of an image–text model have the run's size.
        config = getattr(model.config, "vision_config", model.config)
        heads = config.num_attention_heads
        match self.temperature:
            case ConstantTemperature(value=value):
                initial = torch.tensor([value])
            case PerHeadTemperature(values=values):
                initial = torch.tensor(values)
                if len(initial) != heads:
                    raise UserError(
                        f"model.attention.temperature.values: {len(initial)} temperatures for {heads} heads"
                    )
            case CriticalTemperature() as critical:
                try:
                    initial = critical_temperatures(critical.exponents, config.hidden_size, heads, critical.initial)
                except ValueError as error:
                    raise UserError(f"model.attention.temperature.exponents: {error}") from None
            case schedule:
                initial = torch.tensor([schedule.at(0, 1)])
        attach(model, Tempered(initial.to(next(model.parameters()).device)))

    def update(self, model: Any, step: int, steps: int) -> None:
        """Set the temperature of a model at ``step`` of ``steps`` (0-based)."""
        if isinstance(self.temperature, InverseSquareRootTemperature | LinearTemperature | CosineTemperature):
            set_temperature(model, self.temperature.at(step, steps))


def set_temperature(model: nn.Module, temperature: float | Sequence[float]) -> None:
    """Change the temperature of a model with ``Tempered`` attention: one value, or one per head.

    A temperature that is a tensor is changed in place, so that a compiled model is not compiled again.

    Raises: ValueError if the model's attention is not tempered or the number of heads differs.
    """
    values = torch.as_tensor(temperature, dtype=torch.float32).view(-1)
    Tempered(values)  # checks the range
    for layer in attention_layers(model, cross_attention=True):
        current = _temperature_of(layer)
        if isinstance(current, Tensor):
            if values.numel() not in (1, current.numel()):
                raise ValueError(f"{values.numel()} temperatures for {current.numel()} heads")
            with torch.no_grad():
                current.copy_(values.to(current.device).expand_as(current))
        else:
            device = next(layer.module.parameters()).device
            replacement = float(values) if values.numel() == 1 else values.to(device)
            setattr(layer.module, PARAMETERS_ATTRIBUTE, Tempered(replacement))


def fold_temperature(model: Any, implementation: str = "sdpa") -> None:
    """Divide W_Q and its bias by T, so that plain attention computes the same logits, and detach the temperature.

    A saved ``config.json`` does not name the attention function, so an exported model must not need it.

    Args:
        implementation: the attention function to leave the model with.

    Raises: ValueError, before anything is changed, if a layer is not tempered or T cannot be folded into its queries:
        because of a norm after the projection, a soft-cap, a position bias, or an unknown projection.
    """
    layers = attention_layers(model, cross_attention=True)
    factors = [1 / torch.as_tensor(_temperature_of(layer), dtype=torch.float32).view(-1) for layer in layers]
    queries = [_query_projection(layer) for layer in layers]
    with torch.no_grad():
        for factor, tensors in zip(factors, queries, strict=True):
            for tensor in tensors:
                scale_heads(tensor, factor)
    detach(model, implementation)


def _temperature_of(layer: AttentionLayer) -> float | Tensor:
    parameters = vars(layer.module).get(PARAMETERS_ATTRIBUTE)
    if not isinstance(parameters, Tempered):
        raise ValueError(f"the attention of {layer.name} is not tempered: attach(model, Tempered(...)) first")
    return parameters.temperature


def _query_projection(layer: AttentionLayer) -> list[Tensor]:
    """Return views of W_Q, heads along the first dimension, and of its bias if there is one."""
    module = layer.module
    attributes = ("attn_logit_softcapping", "relative_attention_bias")
    obstacle = query_norm_name(module)
    obstacle = obstacle or next((name for name in attributes if getattr(module, name, None) is not None), None)
    if vars(module).get(STABILISERS_ATTRIBUTE):
        obstacle = "stabilisers"
    elif obstacle is None and hasattr(module, "compute_bias"):  # T5: the bias of the first layer reaches all others
        obstacle = "a position bias"
    if obstacle is not None:
        raise ValueError(f"the temperature of {layer.name} cannot be folded into its queries: it has {obstacle}")
    tensors = projection(module, "query")
    if tensors is None:
        raise ValueError(f"the temperature of {layer.name} cannot be folded: no query projection was found on it")
    return tensors
