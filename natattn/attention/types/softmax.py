"""Softmax attention by PyTorch's fused kernel, not observed."""

from typing import ClassVar, Literal

from natattn.attention.types.base import AttentionType


class SoftmaxAttention(AttentionType):
    """softmax(E) V, as transformers computes it under "sdpa"; models are built with it."""

    observable: ClassVar[bool] = False

    kind: Literal["softmax"]
