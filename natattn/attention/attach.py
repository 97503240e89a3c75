"""Attention types on a model: attach parameters, change the temperature, fold it into the weights for export."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natattn.attention.interface import register
from natattn.attention.modules import (
    PARAMETERS_ATTRIBUTE,
    STABILISERS_ATTRIBUTE,
    AttentionLayer,
    NaturalGradient,
    Tempered,
    attention_layers,
    use_implementation,
)
from natattn.attention.projections import projection, query_norm_name, scale_heads


def attach(model: Any, parameters: NaturalGradient | Tempered) -> None:
    """Run every attention layer of a transformers model, cross-attention included, with these parameters.

    Raises: ValueError when the model has no attention layers that dispatch through transformers' interface.
    """
    register()
    use_implementation(model, parameters.implementation)
    for found in attention_layers(model, cross_attention=True):
        setattr(found.module, PARAMETERS_ATTRIBUTE, parameters)


def detach(model: Any, implementation: str = "sdpa") -> None:
    """Undo ``attach``: remove the parameters and run the layers under another implementation."""
    for found in attention_layers(model, cross_attention=True):
        vars(found.module).pop(PARAMETERS_ATTRIBUTE, None)
    model.set_attn_implementation(implementation)


def set_temperature(model: nn.Module, temperature: float | Sequence[float]) -> None:
    """Change the temperature of a model with ``Tempered`` attention: one value, or one per head.

    Where the temperature is a tensor it is changed in place, so that a compiled model need not be compiled again.

    Raises: ValueError when the model's attention is not tempered or the number of heads differs.
    """
    values = torch.as_tensor(temperature, dtype=torch.float32).view(-1)
    Tempered(values)  # checks the range
    for found in attention_layers(model, cross_attention=True):
        parameters = vars(found.module).get(PARAMETERS_ATTRIBUTE)
        if not isinstance(parameters, Tempered):
            raise ValueError(f"the attention of {found.name} is not tempered: attach(model, Tempered(...)) first")
        current = parameters.temperature
        if isinstance(current, Tensor):
            if values.numel() not in (1, current.numel()):
                raise ValueError(f"{values.numel()} temperatures for {current.numel()} heads")
            with torch.no_grad():
                current.copy_(values.to(current.device).expand_as(current))
        else:
            device = next(found.module.parameters()).device
            replacement = float(values) if values.numel() == 1 else values.to(device)
            setattr(found.module, PARAMETERS_ATTRIBUTE, Tempered(replacement))


def fold_temperature(model: Any, implementation: str = "sdpa") -> None:
    """Divide W_Q and its bias by T, so that the model computes the same logits under plain attention, and detach.

    A saved ``config.json`` does not name the attention function: what is exported must compute the same without it.

    Args:
        implementation: the attention function to leave the model with.

    Raises: ValueError, before anything is changed, when a layer is not tempered or T cannot be folded into its queries:
        a norm after the projection, a soft-cap or a position bias, or a projection that is not known here.
    """
    layers = attention_layers(model, cross_attention=True)
    factors = [1 / _temperature_of(found) for found in layers]
    slices = [_query_slices(found) for found in layers]
    with torch.no_grad():
        for factor, weights in zip(factors, slices, strict=True):
            for weight in weights:
                scale_heads(weight, factor)
    detach(model, implementation)


def _temperature_of(found: AttentionLayer) -> Tensor:
    """T of a layer, float32 [1] or [H]."""
    parameters = vars(found.module).get(PARAMETERS_ATTRIBUTE)
    if not isinstance(parameters, Tempered):
        raise ValueError(f"the attention of {found.name} is not tempered")
    return torch.as_tensor(parameters.temperature, dtype=torch.float32).view(-1)


def _query_slices(found: AttentionLayer) -> list[Tensor]:
    """Views of W_Q with the heads along the first dimension, [H·head_dim, inputs], and of its bias if there is one."""
    module = found.module
    own = ("attn_logit_softcapping", "relative_attention_bias")
    obstacle = query_norm_name(module) or next((name for name in own if getattr(module, name, None) is not None), None)
    if vars(module).get(STABILISERS_ATTRIBUTE):
        obstacle = "stabilisers"
    elif obstacle is None and hasattr(module, "compute_bias"):  # T5: the bias of the first layer reaches all the others
        obstacle = "a position bias"
    if obstacle is not None:
        raise ValueError(f"the temperature of {found.name} cannot be folded into its queries: it has {obstacle}")
    slices = projection(module, "query")
    if slices is None:
        raise ValueError(f"the temperature of {found.name} cannot be folded: no query projection was found on it")
    return slices
