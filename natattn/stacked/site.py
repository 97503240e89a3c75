"""One attention layer of several models that are computed as one batch: each model's own site sees its part."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.site import AttentionSite, MaskCache
from natattn.attention.statistics import EnergyStatistics


class StackedSite:
    """Shows every model's site the sequences of that model, those from s·B to (s + 1)·B of the joint batch.

    Where all rows are observed, the models' statistics are measured at once, their heads side by side. Sampled rows
    differ between the models, so that each is then measured by itself.

    Args:
        sites: one of each model, in the order of the batch, which observe the same quantities.
    """

    def __init__(self, sites: Sequence[AttentionSite]) -> None:
        self.sites = list(sites)

    def observe(self, inputs: AttentionInputs) -> None:
        """Tell whoever looks at one of the models about its part of this forward pass."""
        if not any(site.recording or site.capture is not None for site in self.sites):
            return
        together = self._measured_together(inputs)
        if together:
            for site, statistics in zip(self.sites, self._measure(inputs), strict=True):
                site.add(statistics)
        if not together or any(site.capture is not None for site in self.sites):
            for site, part in zip(self.sites, parts(inputs, len(self.sites)), strict=True):
                site.observe(part, record=not together)

    def _measured_together(self, inputs: AttentionInputs) -> bool:
        row_count = self.sites[0].observation.row_count
        plain = inputs.attention_mask is None and inputs.position_bias is None
        all_rows = row_count is None or row_count >= inputs.length
        return plain and all_rows and all(site.recording for site in self.sites)

    @torch.no_grad()
    def _measure(self, inputs: AttentionInputs) -> list[EnergyStatistics]:
        """Every model's statistics."""
        count = len(self.sites)
        temperature = inputs.temperature
        if isinstance(temperature, Tensor) and temperature.numel() > 1:
            temperature = temperature.repeat(count)
        query, key = (_side_by_side(tensor.detach(), count) for tensor in (inputs.query, inputs.key))
        joint = replace(inputs, query=query, key=key, temperature=temperature)
        with torch.autocast(query.device.type, enabled=False):
            found = self.sites[0].observation.measure(joint, self.sites[0].offset, MaskCache().counts_of(joint))
        totals = {name: total.view(count, -1).unbind() for name, total in found.totals.items()}
        return [
            replace(found, totals={name: of_model[number] for name, of_model in totals.items()})
            for number in range(count)
        ]


def _side_by_side(tensor: Tensor, count: int) -> Tensor:
    """[S·B, H, L, D] → [B, S·H, L, D]."""
    return tensor.view(count, -1, *tensor.shape[1:]).transpose(0, 1).flatten(1, 2)


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
