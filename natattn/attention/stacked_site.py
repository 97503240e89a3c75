"""One attention layer of several models that are computed as one batch: each model's own site sees its part."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.site import AttentionSite


class StackedSite:
    """Shows every model's site the sequences of that model, those from s·B to (s + 1)·B of the joint batch.

    Args:
        sites: one of each model, in the order of the batch.
    """

    def __init__(self, sites: Sequence[AttentionSite]) -> None:
        self.sites = list(sites)

    def observe(self, inputs: AttentionInputs) -> None:
        """Tell whoever looks at one of the models about its part of this forward pass."""
        if not any(site.recording or site.capture is not None for site in self.sites):
            return
        for site, part in zip(self.sites, parts(inputs, len(self.sites)), strict=True):
            site.observe(part)


def parts(inputs: AttentionInputs, count: int) -> list[AttentionInputs]:
    """A joint batch cut into ``count`` of equal size; masks and biases that all sequences share stay as they are."""

    def cut(tensor: Tensor | None) -> Sequence[Tensor | None]:
        if tensor is None or tensor.shape[0] == 1:
            return [tensor] * count
        return torch.chunk(tensor, count)

    return [
        replace(inputs, query=query, key=key, attention_mask=mask, position_bias=bias)
        for query, key, mask, bias in zip(
            torch.chunk(inputs.query, count),
            torch.chunk(inputs.key, count),
            cut(inputs.attention_mask),
            cut(inputs.position_bias),
            strict=True,
        )
    ]
