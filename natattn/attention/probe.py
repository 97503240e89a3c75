"""The probe: what an optimizer or a tracker can know about a model's attention in this step.

A probe owns one site per attention layer. It never changes what the model computes, and on steps that it does not
record a site costs one attribute look-up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from natattn.attention.energy import EnergySums, energy_sums
from natattn.attention.interface import NATURAL, SITE_ATTRIBUTE, register
from natattn.randomness import addressed_seed


@dataclass
class AttentionSite:
    """One attention layer under observation."""

    layer: int
    module: nn.Module
    row_count: int | None
    with_entropy: bool
    offset: float = 0.5
    recording: bool = False
    sums: EnergySums | None = field(default=None, repr=False)

    @torch.no_grad()
    def record(
        self, query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float | None, is_causal: bool
    ) -> None:
        """Add this forward pass to the sums of the step; see ``energy_sums`` for shapes."""
        # Under autocast the products would be rounded to bfloat16: statistics are float32 always.
        with torch.autocast(query.device.type, enabled=False):
            sums = energy_sums(
                query.detach(),
                key.detach(),
                scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                attention_mask=attention_mask,
                is_causal=is_causal,
                row_count=self.row_count,
                offset=self.offset,
                with_entropy=self.with_entropy,
            )
        self.sums = sums if self.sums is None else self.sums + sums


class AttentionProbe:
    """Observes every self-attention layer of a transformers model that dispatches attention by name.

    While attached, the model runs under ``attn_implementation="natural"``, whose output is that of ``"sdpa"``;
    ``detach`` restores the implementation and removes every trace. Probes nest: a second one takes the place of the
    first until it is detached.

    Args:
        model: a transformers ``PreTrainedModel``.
        row_count: query rows sampled per sequence and step; None observes all rows.
        every: record on steps divisible by this.
        with_entropy: also record the entropy of the patterns.
        seed: of the generator that places the sampled rows; independent of every generator that training uses.
    """

    def __init__(
        self,
        model: Any,
        *,
        row_count: int | None = 32,
        every: int = 1,
        with_entropy: bool = False,
        seed: int = 0,
    ) -> None:
        register()
        self.model = model
        self.every = every
        self.seed = seed
        self.sites = [
            AttentionSite(layer, module, row_count, with_entropy) for layer, module in attention_modules(model)
        ]
        if not self.sites:
            raise ValueError(f"{type(model).__name__} has no attention layers that the probe knows how to find")
        self._previous_implementation: str = model.config._attn_implementation
        self._previous_sites = [vars(site.module).get(SITE_ATTRIBUTE) for site in self.sites]
        model.set_attn_implementation(NATURAL)
        for site in self.sites:
            setattr(site.module, SITE_ATTRIBUTE, site)

    def detach(self) -> None:
        """Leave the model as it was."""
        for site, previous in zip(self.sites, self._previous_sites, strict=True):
            if previous is not None:
                setattr(site.module, SITE_ATTRIBUTE, previous)
            elif SITE_ATTRIBUTE in vars(site.module):
                delattr(site.module, SITE_ATTRIBUTE)
        self.model.set_attn_implementation(self._previous_implementation)

    def __enter__(self) -> "AttentionProbe":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the forward passes made inside, all as one step (micro-batches add up), if this step is due."""
        if step % self.every == 0:
            offset = _offset(self.seed, step)
            for site in self.sites:
                site.sums, site.offset, site.recording = None, offset, True
        try:
            yield
        finally:
            for site in self.sites:
                site.recording = False

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers, in the model's order."""
        return [site.layer for site in self.sites]

    def sums(self, layer: int) -> EnergySums:
        """What was last recorded of a layer.

        Raises: RuntimeError when nothing has been recorded yet.
        """
        for site in self.sites:
            if site.layer == layer:
                if site.sums is None:
                    raise RuntimeError(
                        f"layer {layer} has not been observed yet: run a forward pass inside probe.step()"
                    )
                return site.sums
        raise KeyError(f"the probe has no layer {layer}; it observes {self.layers}")

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Mean of |E| over the layer's heads and allowed pairs, a float32 scalar on the model's device."""
        return self.sums(layer).mean_absolute_energy.mean()


def attention_modules(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """(layer index, module) of every self-attention layer: what has a ``layer_idx`` and an ``is_causal``."""
    found: list[tuple[int, nn.Module]] = []
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and hasattr(module, "is_causal") and not getattr(module, "is_cross_attention", False):
            found.append((layer, module))
    return found


def _offset(seed: int, step: int) -> float:
    """The step's place in [0, 1) of the sampled rows; a function of (seed, step) alone."""
    return addressed_seed(seed, "sampled rows", step) / 2**63
