"""The attention functions that transformers dispatches to by name: ``attn_implementation="natural"``.

The output comes from the same fused kernel as ``attn_implementation="sdpa"``; what natural attention adds is that a
probe can observe the queries, keys and mask on their way. Parameters, initialisation, cache and generation are those of
the host architecture.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NATURAL = "natural"
SITE_ATTRIBUTE = "_attention_site"


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
) -> tuple[Tensor, None]:
    """softmax(scaling · Q Kᵀ + mask) V, observed by the probe's site on this module when one is recording.

    Args:
        module: the host's attention layer; without a mask its ``is_causal`` decides, as in transformers' own functions.
        query: [batch, heads, queries, head_dim]; key and value: [batch, key heads, keys, head_dim].
        attention_mask: None or broadcastable to [batch, heads, queries, keys], boolean or additive.

    Returns: the output [batch, queries, heads, head_dim], and None in place of the weights.
    """
    site = getattr(module, SITE_ATTRIBUTE, None)
    if site is not None and site.recording:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        site.record(query, key, attention_mask, scaling, causal)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


def register() -> None:
    """Make ``attn_implementation="natural"`` known to transformers, with its mask function; harmless when repeated.

    Without a mask function registered under the same name transformers would drop the padding mask.
    """
    AttentionInterface.register(NATURAL, natural_attention)
    AttentionMaskInterface.register(NATURAL, sdpa_mask)
