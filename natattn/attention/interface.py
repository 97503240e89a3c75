"""The attention functions that transformers dispatches to by name.

``attn_implementation="natural"`` is softmax attention that a probe can observe; ``"natural_gradient"`` changes the
gradient that reaches the queries and keys; ``"tempered"`` computes softmax(E/T). All take the output from the fused
kernel behind ``"sdpa"`` wherever that kernel computes it. Parameters, initialisation, cache and generation are those of
the host architecture.

Arguments and result are those of transformers' own functions: query [batch, heads, queries, head_dim], key and value
[batch, key heads, keys, head_dim], a mask that is None or broadcastable to [batch, heads, queries, keys] (boolean or
additive), without a mask ``is_causal`` or else the module's own; the result is the output
[batch, queries, heads, head_dim], and None in place of the weights.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from natattn.attention.energy import AttentionInputs
from natattn.attention.modules import (
    NATURAL,
    NATURAL_GRADIENT,
    PARAMETERS_ATTRIBUTE,
    SITE_ATTRIBUTE,
    STABILISERS_ATTRIBUTE,
    TEMPERED,
    NaturalGradient,
    Tempered,
)
from natattn.attention.softmax import explicit_attention

Output = tuple[Tensor, None]
Parameters = TypeVar("Parameters", NaturalGradient, Tempered)


def natural_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> Output:
    """softmax(E) V, observed by the probe's site on this module when one is recording."""
    inputs = _inputs(module, query, key, attention_mask, scaling, is_causal, kwargs)
    _observe(module, inputs)
    if inputs.softcap is not None:  # no fused kernel of PyTorch has it
        return _output(explicit_attention(inputs, value, dropout=dropout))
    return _fused(module, inputs, value, dropout, kwargs)


def natural_gradient_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> Output:
    """softmax(E) V, whose backward sends the damped natural gradient to Q and K and the plain one to V.

    Where a gradient is wanted the pattern is held in memory, O(L²) per layer; elsewhere the fused kernel runs.
    """
    damping = _parameters(module, NaturalGradient).damping
    inputs = _inputs(module, query, key, attention_mask, scaling, is_causal, kwargs)
    _observe(module, inputs)
    # With dropout the two paths draw differently, and a checkpointed forward runs without and then with gradients.
    if inputs.softcap is None and dropout == 0.0 and not torch.is_grad_enabled():
        return _fused(module, inputs, value, dropout, kwargs)
    return _output(explicit_attention(inputs, value, dropout=dropout, damping=damping))


def tempered_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> Output:
    """softmax(E/T) V. The probe sees E without T, and the pattern with it."""
    temperature = _parameters(module, Tempered).temperature
    inputs = _inputs(module, query, key, attention_mask, scaling, is_causal, kwargs, temperature)
    _observe(module, inputs)
    if inputs.softcap is not None:  # T acts after the cap and cannot be folded into the scaling
        return _output(explicit_attention(inputs, value, dropout=dropout))
    return _fused(module, _with_temperature_folded(inputs), value, dropout, kwargs)


def register() -> None:
    """Make the three implementations known to transformers, with their mask function; harmless when repeated.

    Without a mask function registered under the same name transformers would drop the padding mask.
    """
    functions = {
        NATURAL: natural_attention,
        NATURAL_GRADIENT: natural_gradient_attention,
        TEMPERED: tempered_attention,
    }
    for name, function in functions.items():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)


def _inputs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    is_causal: bool | None,
    kwargs: dict[str, Any],
    temperature: float | Tensor = 1.0,
) -> AttentionInputs:
    """What the call's softmax is made of.

    Raises: NotImplementedError for learned sinks, which would be ignored in silence.
    """
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError(f"{type(module).__name__} has learned attention sinks (s_aux): use eager attention")
    inputs = AttentionInputs(
        query,
        key,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        attention_mask=attention_mask,
        is_causal=is_causal if is_causal is not None else bool(getattr(module, "is_causal", True)),
        softcap=kwargs.get("softcap"),
        position_bias=kwargs.get("position_bias"),
        temperature=temperature,
    )
    stabilisers = getattr(module, STABILISERS_ATTRIBUTE, None)
    return stabilisers.applied_to(inputs) if stabilisers else inputs


def _observe(module: nn.Module, inputs: AttentionInputs) -> None:
    site = getattr(module, SITE_ATTRIBUTE, None)
    if site is not None:
        site.observe(inputs)


def _fused(module: nn.Module, inputs: AttentionInputs, value: Tensor, dropout: float, kwargs: dict[str, Any]) -> Output:
    output, _ = sdpa_attention_forward(
        module,
        inputs.query,
        inputs.key,
        value,
        inputs.attention_mask,
        dropout=dropout,
        scaling=inputs.scaling,
        is_causal=inputs.is_causal,
        **{**kwargs, "position_bias": inputs.position_bias},
    )
    return output, None


def _output(output_BHLD: Tensor) -> Output:
    return output_BHLD.transpose(1, 2).contiguous(), None


def _with_temperature_folded(inputs: AttentionInputs) -> AttentionInputs:
    """The same pattern at T = 1: scores and biases divided by T."""
    per_head = inputs.broadcast_temperature
    mask, bias = inputs.attention_mask, inputs.position_bias
    if mask is not None and mask.dtype != torch.bool:
        mask = (mask / per_head).to(mask.dtype).clamp_min(torch.finfo(mask.dtype).min)
    query, scaling = inputs.query, inputs.scaling
    if isinstance(per_head, Tensor):
        # The product is rounded once, to the queries' dtype; 1/T itself is not.
        query = (query / per_head).to(query.dtype)
    else:
        scaling = scaling / per_head
    return AttentionInputs(
        query,
        inputs.key,
        scaling=scaling,
        attention_mask=mask,
        is_causal=inputs.is_causal,
        position_bias=None if bias is None else (bias / per_head).to(bias.dtype),
    )


def _parameters(module: nn.Module, kind: type[Parameters]) -> Parameters:
    parameters = getattr(module, PARAMETERS_ATTRIBUTE, None)
    if not isinstance(parameters, kind):
        raise ValueError(
            f"{kind.implementation} attention without its parameters: "
            f"natattn.attention.attach.attach(model, {kind.__name__}(...)) sets them"
        )
    return parameters
