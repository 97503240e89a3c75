"""The probe: observes a model's attention during a step, for an optimizer or a tracker.

A probe owns one site per attention layer. It never changes what the model computes. On steps that it does not record, a
site costs a look-up, one or two microseconds per layer.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from natattn.attention.layers import SITE_ATTRIBUTE, attention_layers, use_implementation
from natattn.attention.site import AttentionSite, MaskCache, Observation
from natattn.attention.statistics import EnergyStatistics, all_reduce
from natattn.attention.types.base import IMPLEMENTATIONS
from natattn.attention.types.natural import NATURAL
from natattn.distributed.ranks import Ranks
from natattn.randomness import addressed_seed


class AttentionProbe:
    """Observes the attention layers of a transformers model that dispatches attention by name.

    While attached, the model runs under ``attn_implementation="natural"``, whose output is that of ``"sdpa"``, or under
    the attention type of this package that it already has; ``detach`` restores the implementation and removes every
    trace. Probes nest: a second one replaces the first until it is detached.

    Gradient accumulation adds up: the statistics are of all forward passes inside ``step``. Activation checkpointing
    runs a layer's forward a second time, inside the backward pass, which is not counted. Under ``torch.compile`` a
    recorded step breaks the graph at every layer; other steps do not.

    Args:
        model: a transformers ``PreTrainedModel``.
        quantities: names from ``natattn.attention.quantities.QUANTITIES``; only these are computed.
        row_count: query rows sampled per sequence and step; None observes all rows, in chunks.
        exact: those of the quantities that are measured over all rows although the others are sampled, at the cost of
            a pass over all rows: quantities that are ``BIASED_WHEN_SAMPLED`` and must be right, such as the maximum
            for QK-clip.
        every: record on steps divisible by this.
        layers: indices of the layers to observe; None for all.
        cross_attention: also observe layers that read another sequence; they are numbered after the others.
        seed: of the generator that chooses the sampled rows; independent of every generator that training uses.

    Raises: ValueError for a model without such layers, unknown quantities or layers, or values out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        quantities: Collection[str] = ("mean_absolute_energy",),
        row_count: int | None = 32,
        exact: Collection[str] = (),
        every: int = 1,
        layers: Collection[int] | None = None,
        cross_attention: bool = False,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.model = model
        self.every = every
        self.quantities = tuple(quantities)
        self.seed = seed
        observation = Observation(tuple(quantities), tuple(exact), row_count)
        all_layers = attention_layers(model, cross_attention=cross_attention)
        if not all_layers and layers is None:
            raise ValueError(f"{type(model).__name__} has no attention layers that the probe knows how to find")
        indices = [layer.layer for layer in all_layers]
        if layers is not None and not set(layers) <= set(indices):
            raise ValueError(f"layers={sorted(layers)}: the model has {indices}")
        self._masks = MaskCache()
        self.sites = [
            AttentionSite(layer.layer, layer.name, observation, self._masks, layer.is_cross_attention)
            for layer in all_layers
            if layers is None or layer.layer in layers
        ]
        self._reduced = True  # nothing has been recorded yet
        self._detached = False
        # An encoder–decoder has a configuration for each part.
        configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
        self._previous_implementations = [(config, config._attn_implementation) for config in configs.values()]
        self._modules = [model.get_submodule(site.name) for site in self.sites]
        self._previous_sites = [vars(module).get(SITE_ATTRIBUTE) for module in self._modules]
        if self.sites and model.config._attn_implementation not in IMPLEMENTATIONS:
            use_implementation(model, NATURAL)
        for site, module in zip(self.sites, self._modules, strict=True):
            setattr(module, SITE_ATTRIBUTE, site)

    def detach(self) -> None:
        """Restore the model; a second call does nothing.

        Raises: RuntimeError while a probe that was attached after this one still is.
        """
        if self._detached:
            return
        for site, module in zip(self.sites, self._modules, strict=True):
            if vars(module).get(SITE_ATTRIBUTE) is not site:
                raise RuntimeError("another probe was attached to the model after this one; detach that one first")
        self._detached = True
        for module, previous in zip(self._modules, self._previous_sites, strict=True):
            if previous is not None:
                setattr(module, SITE_ATTRIBUTE, previous)
            else:
                vars(module).pop(SITE_ATTRIBUTE, None)
        for config, implementation in self._previous_implementations:
            config._attn_implementation = implementation

    def __enter__(self) -> "AttentionProbe":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the forward passes made inside as one step (micro-batches add up), if this step is due."""
        if step % self.every == 0 and self.quantities:
            # The offset of the sampled rows, in [0, 1), is a function of (seed, step) alone.
            offset = addressed_seed(self.seed, "sampled rows", step) / 2**63
            self._reduced = False
            for site in self.sites:
                site.statistics, site.offset, site.recording = None, offset, True
        try:
            yield
        finally:
            self._masks.clear()
            for site in self.sites:
                site.recording = False

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers, in the model's order."""
        return [site.layer for site in self.sites]

    @property
    def recorded_layers(self) -> list[int]:
        """Layers that the last recorded step has reached; a layer may be skipped or frozen in a step."""
        return [site.layer for site in self.sites if site.statistics is not None]

    def statistics(self, layer: int) -> EnergyStatistics:
        """Return the statistics of a layer in the last recorded step.

        Raises: RuntimeError if nothing has been recorded yet, KeyError for a layer that is not observed.
        """
        for site in self.sites:
            if site.layer == layer:
                return site.recorded()
        raise KeyError(f"the probe has no layer {layer}; it observes {self.layers}")

    def mean_energy(self, layer: int) -> Tensor:
        """Return the mean of E over the layer's heads and allowed pairs, a float32 scalar on the model's device."""
        return self.statistics(layer)["mean_energy"].mean()

    def attention_distance(self, layer: int) -> Tensor:
        """Return the mean distance that each head attends over, in tokens, [H]."""
        return self.statistics(layer)["attention_distance"]

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Return the mean of |E| over the layer's heads and allowed pairs, a float32 scalar on the model's device."""
        return self.statistics(layer)["mean_absolute_energy"].mean()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the last recorded step as flat tensors, which a run with ``every`` > 1 needs to resume exactly."""
        tensors: dict[str, Tensor] = {}
        for site in self.sites:
            if site.statistics is not None:
                recorded = site.statistics
                # A compiled pass may give all layers the same tensor, which safetensors refuses to write twice.
                tensors[f"{site.layer}.pairs"] = recorded.pairs.clone()
                tensors[f"{site.layer}.rows"] = recorded.rows.clone()
                for term, total in recorded.totals.items():
                    kind = "sampled" if term in recorded.sampled else "exact"
                    tensors[f"{site.layer}.{kind}.{term}"] = total
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        for site in self.sites:
            prefix = f"{site.layer}."
            saved = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if saved:
                terms = [name.split(".") for name in saved if "." in name]
                totals = {term: saved[f"{kind}.{term}"] for kind, term in terms}
                sampled = frozenset(term for kind, term in terms if kind == "sampled")
                site.statistics = EnergyStatistics(saved["pairs"], saved["rows"], totals, sampled)
        self._reduced = True

    def reduce(self, ranks: Ranks | None = None) -> None:
        """Replace the recorded step's statistics by those of all ranks' batches; a second call does nothing.

        Args:
            ranks: None for those of the default process group.
        """
        if not self._reduced:
            reduced = all_reduce([site.recorded() for site in self.sites], ranks or Ranks.of_group())
            for site, statistics in zip(self.sites, reduced, strict=True):
                site.statistics = statistics
            self._reduced = True
