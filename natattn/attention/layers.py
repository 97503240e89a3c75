"""The attention layers of a transformers model: where they are, what this package hangs on them, their projections.

What is hung on a layer are plain attributes, outside parameters, buffers and ``state_dict``: the site of a probe, the
parameters of the attention function, and the stabilisers. transformers' ``set_attn_implementation`` chooses the
attention function itself.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

SITE_ATTRIBUTE = "_attention_site"
PARAMETERS_ATTRIBUTE = "_attention_parameters"
STABILISERS_ATTRIBUTE = "_attention_stabilisers"

# GPT2Attention has a flag; Bart calls the module encoder_attn, T5 EncDecAttention, Bert BertCrossAttention.
_CROSS_ATTENTION = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)

Projected = Literal["query", "key", "value"]
_PROJECTION_NAMES: dict[Projected, tuple[str, ...]] = {
    "query": ("q_proj", "query", "q_lin", "q"),
    "key": ("k_proj", "key", "k_lin", "k"),
    "value": ("v_proj", "value", "v_lin", "v"),
}
_QUERY_NORMS = ("q_norm", "query_norm", "q_layernorm")


class Parameters(Protocol):
    """Parameters of an attention function, and the name that transformers dispatches it by."""

    implementation: ClassVar[str]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a model; ``layer`` is its index, unique among the layers it was returned with."""

    layer: int
    name: str
    module: nn.Module
    is_cross_attention: bool


def attention_layers(model: nn.Module, *, cross_attention: bool = False) -> list[AttentionLayer]:
    """Return the self-attention layers of a model in order, and with ``cross_attention`` the others as well.

    A layer is a module with an ``is_causal`` flag and a ``config``, the two things that transformers' attention
    functions read. Its index is its ``layer_idx`` if all layers have one and no two are equal (false in an
    encoder–decoder), otherwise its position among the self-attention layers. Cross-attention layers, which read another
    sequence, are numbered after them.
    """
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "is_causal", None), bool) and hasattr(module, "config")
    ]
    crossing = {name for name, module in modules if _is_cross_attention(name, module)}
    own = [(name, module) for name, module in modules if name not in crossing]
    indices = [index for _, module in own if isinstance(index := getattr(module, "layer_idx", None), int)]
    if len(set(indices)) != len(own):
        indices = list(range(len(own)))
    numbers = {name: index for (name, _), index in zip(own, indices, strict=True)}
    if cross_attention:
        others = [name for name, _ in modules if name in crossing]
        numbers |= {name: max(indices, default=-1) + 1 + position for position, name in enumerate(others)}
    return [
        AttentionLayer(numbers[name], name, module, is_cross_attention=name in crossing)
        for name, module in modules
        if name in numbers
    ]


def _is_cross_attention(name: str, module: nn.Module) -> bool:
    if getattr(module, "is_cross_attention", False):
        return True
    return any(_CROSS_ATTENTION.search(text) for text in (*name.split(".")[-2:], type(module).__name__))


def use_implementation(model: Any, implementation: str) -> None:
    """Run a transformers model's attention layers under the attention function of this name.

    Raises: ValueError if the model has no attention layers, or some that do not dispatch attention by name.
    """
    layers = attention_layers(model, cross_attention=True)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention layers that dispatch by name")
    model.set_attn_implementation(implementation)
    for layer in layers:
        # transformers only warns if it cannot set the name.
        if layer.module.config._attn_implementation != implementation:  # type: ignore[union-attr]
            raise ValueError(f"{type(model).__name__} does not dispatch attention by name: {layer.name} keeps its own")


def attach(model: Any, parameters: Parameters) -> None:
    """Run every attention layer of a transformers model, cross-attention included, with these parameters.

    Raises: ValueError if the model has no attention layers that dispatch through transformers' interface.
    """
    use_implementation(model, parameters.implementation)
    for layer in attention_layers(model, cross_attention=True):
        setattr(layer.module, PARAMETERS_ATTRIBUTE, parameters)


def detach(model: Any, implementation: str = "sdpa") -> None:
    """Undo ``attach``: remove the parameters and run the layers under another implementation."""
    for layer in attention_layers(model, cross_attention=True):
        vars(layer.module).pop(PARAMETERS_ATTRIBUTE, None)
    model.set_attn_implementation(implementation)


def projection(module: nn.Module, which: Projected) -> list[Tensor] | None:
    """Return views of a projection's weight, heads along the first dimension, and of its bias if there is one.

    GPT-2 fuses W_Q, W_K, W_V as [inputs, 3·outputs] (in cross-attention W_K and W_V); the views are slices of that.

    Returns: [weight [heads·head_dim, inputs], bias [heads·head_dim]], or None if the layer has no projection of a known
        name and layout.
    """
    fused: Any = getattr(module, "c_attn", None)
    if type(fused).__name__ == "Conv1D":  # GPT-BigCode has a linear c_attn, with another layout
        parts = list(_PROJECTION_NAMES)
        crossing: Any = getattr(module, "q_attn", None)  # in cross-attention
        if crossing is not None:
            if which == "query":
                return [crossing.weight.T, crossing.bias]
            parts.remove("query")
        width = fused.bias.shape[0] // len(parts)
        return [tensor.narrow(0, parts.index(which) * width, width) for tensor in (fused.weight.T, fused.bias)]
    name = _linear_name(module, which)
    if name is None:
        return None
    linear = getattr(module, name)
    return [tensor for tensor in (linear.weight, linear.bias) if tensor is not None]


def projection_name(module: nn.Module, which: Projected) -> str | None:
    """Return the name, inside the attention layer, of the linear map that makes the queries, keys or values."""
    if isinstance(getattr(module, "c_attn", None), nn.Module):
        is_separate = which == "query" and isinstance(getattr(module, "q_attn", None), nn.Module)
        return "q_attn" if is_separate else "c_attn"
    return _linear_name(module, which)


def _linear_name(module: nn.Module, which: Projected) -> str | None:
    names = _PROJECTION_NAMES[which]
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Linear)), None)


def query_norm_name(module: nn.Module) -> str | None:
    """Return the name, inside the attention layer, of the norm between its query projection and the softmax."""
    return next((name for name in _QUERY_NORMS if getattr(module, name, None) is not None), None)


def scale_heads(tensor: Tensor, factor_H: Tensor) -> None:
    """Multiply the rows of each head in place, in the factor's precision, rounding once.

    Args:
        tensor: a view that ``projection`` returned, [heads·head_dim, …].
        factor_H: [heads], or [1] for all heads.
    """
    per_row = factor_H.to(tensor.device).repeat_interleave(tensor.shape[0] // factor_H.numel())
    tensor.copy_(tensor * per_row.view(-1, *[1] * (tensor.ndim - 1)))


def head_counts(module: nn.Module) -> tuple[int, int] | None:
    """Return the numbers of query heads and key heads by the layer's configuration; None if it does not state them."""
    config = getattr(module, "config", None)
    heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    key_heads = getattr(config, "num_key_value_heads", None)
    return heads, key_heads if isinstance(key_heads, int) else heads
