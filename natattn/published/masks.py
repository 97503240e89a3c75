"""Conversion of the masks that callers may pass to the published attention."""

import math

import torch
from torch import Tensor

from natattn.attention.energy import is_allowed


def whole_mask(
    mask: Tensor | None, query_BHLD: Tensor, key_BHSD: Tensor, *, is_causal: bool, first_position: int
) -> Tensor | None:
    """The given mask together with the layer's own rule, whatever the mask itself says about later tokens.

    The rule: a causal row sees the keys up to its own position. A cache of fixed size holds empty keys after the last
    token, which no row may see.

    Args:
        mask: None; [batch, keys], nonzero for real tokens; or broadcastable to [batch, heads, queries, keys], boolean
            (True is allowed) or additive.
        first_position: of the first query among the keys.

    Returns: None where ``is_causal`` alone says it; else boolean or additive, [B or 1, H or 1, L, S].

    Raises: ValueError for a shape or dtype that does not fit.
    """
    (batch, heads, length, _), key_length = query_BHLD.shape, key_BHSD.shape[2]
    tokens = first_position + length
    if mask is None and key_length == tokens and (not is_causal or length == 1 or first_position == 0):
        return None
    keys_S = torch.arange(key_length, device=key_BHSD.device)
    rows_L = torch.arange(first_position, tokens, device=key_BHSD.device)
    rule_LS = keys_S <= rows_L[:, None] if is_causal else (keys_S < tokens).expand(length, -1)
    if mask is None:
        return rule_LS[None, None]
    if mask.shape == (batch, key_length):
        return rule_LS & mask.bool()[:, None, None]
    full = (batch, heads, length, key_length)
    if mask.ndim != 4 or any(own not in (1, size) for own, size in zip(mask.shape, full, strict=True)):
        raise ValueError(
            f"attention_mask: shape {list(mask.shape)}, needs {[batch, key_length]} or one that broadcasts to "
            f"{list(full)}"
        )
    if mask.dtype == torch.bool:
        return rule_LS & mask
    if not mask.is_floating_point():
        raise ValueError(f"attention_mask: {mask.dtype} in 4 dimensions, needs to be boolean or floating")
    return mask.to(query_BHLD.dtype).masked_fill(~(rule_LS & is_allowed(mask)), -math.inf)


def head_factors(head_mask: Tensor, query_BHLD: Tensor, layers: int, layer: int | None) -> Tensor:
    """A head mask as factors [batch or 1, heads, 1, 1].

    Args:
        head_mask: [heads]; [layers, heads], of which the layer takes its row; or [batch or 1, heads, 1, 1].

    Raises: ValueError for another shape, and for [layers, heads] without a layer index.
    """
    batch, heads = query_BHLD.shape[:2]
    if head_mask.shape == (layers, heads):
        if layer is None:
            raise ValueError("head_mask: [layers, heads] needs a block made with layer_idx; give [heads]")
        head_mask = head_mask[layer]
    if head_mask.shape == (heads,):
        return head_mask.view(1, heads, 1, 1)
    if head_mask.shape in ((1, heads, 1, 1), (batch, heads, 1, 1)):
        return head_mask
    raise ValueError(
        f"head_mask: shape {list(head_mask.shape)}, needs [{heads}], [{layers}, {heads}] or "
        f"[{batch} or 1, {heads}, 1, 1]"
    )
