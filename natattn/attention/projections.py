"""Where an attention layer keeps W_Q, W_K and W_V: one place that knows the host architectures' names and layouts."""

from typing import Any, Literal

from torch import Tensor, nn

Projected = Literal["query", "key", "value"]

_NAMES: dict[Projected, tuple[str, ...]] = {
    "query": ("q_proj", "query", "q_lin", "q"),
    "key": ("k_proj", "key", "k_lin", "k"),
    "value": ("v_proj", "value", "v_lin", "v"),
}
_ORDER: tuple[Projected, ...] = ("query", "key", "value")
_QUERY_NORMS = ("q_norm", "query_norm", "q_layernorm")


def projection(module: nn.Module, which: Projected) -> list[Tensor] | None:
    """Views of a projection's weight, with the heads along the first dimension, and of its bias if there is one.

    GPT-2 fuses W_Q, W_K, W_V as [inputs, 3·outputs] (in cross-attention W_K and W_V); the views are slices of that.

    Returns: [weight [heads·head_dim, inputs], bias [heads·head_dim]], or None where the layer has no projection of a
        known name and layout.
    """
    if type(getattr(module, "c_attn", None)).__name__ == "Conv1D":  # GPT-BigCode cuts its linear one otherwise
        return _of_gpt2(module, which)
    for name in _NAMES[which]:
        linear = getattr(module, name, None)
        if isinstance(linear, nn.Linear):
            return [tensor for tensor in (linear.weight, linear.bias) if tensor is not None]
    return None


def projection_name(module: nn.Module, which: Projected) -> str | None:
    """Name, inside the attention layer, of the linear map that makes the queries, keys or values."""
    if isinstance(getattr(module, "c_attn", None), nn.Module):
        is_own_query = which == "query" and isinstance(getattr(module, "q_attn", None), nn.Module)
        return "q_attn" if is_own_query else "c_attn"
    return next((name for name in _NAMES[which] if isinstance(getattr(module, name, None), nn.Linear)), None)


def query_norm_name(module: nn.Module) -> str | None:
    """Name, inside the attention layer, of the norm between its query projection and the softmax."""
    return next((name for name in _QUERY_NORMS if getattr(module, name, None) is not None), None)


def scale_heads(tensor: Tensor, factor_H: Tensor) -> None:
    """Multiply the rows of each head in place; in the factor's precision, rounded once.

    Args:
        tensor: as of ``projection``, [heads·head_dim, …].
        factor_H: [heads], or [1] for all of them.
    """
    per_row = factor_H.to(tensor.device).repeat_interleave(tensor.shape[0] // factor_H.numel())
    tensor.copy_(tensor * per_row.view(-1, *[1] * (tensor.ndim - 1)))


def head_counts(module: nn.Module) -> tuple[int, int] | None:
    """Numbers of query heads and of key heads, from the layer's configuration; None where it does not say."""
    config = getattr(module, "config", None)
    heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    key_heads = getattr(config, "num_key_value_heads", None)
    return heads, key_heads if isinstance(key_heads, int) else heads


def _of_gpt2(module: Any, which: Projected) -> list[Tensor]:
    order = _ORDER
    fused = module.c_attn
    if isinstance(getattr(module, "q_attn", None), nn.Module):  # cross-attention
        if which == "query":
            return [module.q_attn.weight.T, module.q_attn.bias]
        order = ("key", "value")
    width = fused.bias.shape[0] // len(order)
    start = order.index(which) * width
    return [tensor.narrow(0, start, width) for tensor in (fused.weight.T, fused.bias)]
