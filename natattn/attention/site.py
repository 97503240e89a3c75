"""An attention layer under observation: which quantities are measured, and the statistics of the step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.quantities import terms_of
from natattn.attention.statistics import Counts, EnergyStatistics, sampled_statistics, streaming_statistics


@dataclass(frozen=True)
class Observation:
    """The quantities that are measured of a layer, and from how many rows; see ``AttentionProbe`` for the fields."""

    quantities: tuple[str, ...]
    exact: tuple[str, ...]
    row_count: int | None

    def __post_init__(self) -> None:
        terms_of(self.quantities)
        for name in self.exact:
            if name not in self.quantities:
                raise ValueError(f"exact={name!r} is not among the quantities that are recorded")
        if self.row_count is not None and self.row_count < 1:
            raise ValueError(f"row_count={self.row_count}: must be at least 1, or None for all rows")

    def measure(self, inputs: AttentionInputs, offset: float, counts: Counts) -> EnergyStatistics:
        """Return the statistics of one forward pass of one layer."""
        if self.row_count is None:
            return streaming_statistics(inputs, self.quantities, counts=counts)
        sampled = tuple(name for name in self.quantities if name not in self.exact)
        if not self.exact:
            return sampled_statistics(inputs, sampled, row_count=self.row_count, offset=offset, counts=counts)
        exact = streaming_statistics(inputs, self.exact, counts=counts)
        if not sampled:
            return exact
        estimates = sampled_statistics(inputs, sampled, row_count=self.row_count, offset=offset, counts=counts)
        return estimates.with_totals_of(exact)


class MaskCache:
    """The counts of a mask and its form without padded rows, computed once for all layers of a forward pass."""

    def __init__(self) -> None:
        self._counted: tuple[Tensor, tuple[int, ...], Counts] | None = None
        self._unpadded: tuple[Tensor, int, Tensor | None] | None = None

    def counts_of(self, inputs: AttentionInputs) -> Counts:
        """Return ``inputs.count_pairs_and_rows()``, cached for the last mask."""
        mask = inputs.attention_mask
        # Without a mask there is nothing to count; the compiler merges equal counts by itself.
        if mask is None or torch.compiler.is_compiling():
            return inputs.count_pairs_and_rows()
        key = (_version(mask), inputs.batch, inputs.length, inputs.key_length)
        if self._counted is None or self._counted[0] is not mask or self._counted[1] != key:
            self._counted = mask, key, inputs.count_pairs_and_rows()
        return self._counted[2]

    def unpadded(self, inputs: AttentionInputs) -> AttentionInputs:
        """Return ``inputs.without_padded_rows()``, its mask cached for the last mask."""
        mask = inputs.attention_mask
        if mask is None or torch.compiler.is_compiling():
            return inputs.without_padded_rows()
        if self._unpadded is None or self._unpadded[0] is not mask or self._unpadded[1] != _version(mask):
            self._unpadded = mask, _version(mask), inputs.without_padded_rows().attention_mask
        return replace(inputs, attention_mask=self._unpadded[2])

    def clear(self) -> None:
        """Release the masks."""
        self._counted = self._unpadded = None


def _version(mask: Tensor) -> int:
    """Return a number that changes when the mask is changed in place; inference tensors have no version."""
    return 0 if mask.is_inference() else mask._version


@dataclass
class AttentionSite:
    """One attention layer under observation.

    It is an attribute of the layer's module and does not refer to it: a cycle would keep a discarded model in memory.
    """

    layer: int
    name: str
    observation: Observation
    masks: MaskCache = field(repr=False)
    is_cross_attention: bool = False
    offset: float = 0.5
    recording: bool = False
    capture: "Callable[[AttentionSite, AttentionInputs], None] | None" = field(default=None, repr=False)
    statistics: EnergyStatistics | None = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, object]) -> "AttentionSite":
        """Return a site that records nothing: the probe of the original must not observe a copy of the model."""
        return replace(self, masks=MaskCache(), recording=False, capture=None)

    def observe(self, inputs: AttentionInputs, *, record: bool = True) -> None:
        """Record this forward pass, and show it to ``capture``; ignore recomputation under activation checkpointing.

        Padded queries are left out.

        Args:
            record: False if its statistics have been added already.
        """
        if not (self.recording or self.capture is not None):
            return
        # A forward inside a backward pass is a recomputation. A compiled checkpoint does not run this code again.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        if not self.is_cross_attention:
            inputs = self.masks.unpadded(inputs)
        inputs = replace(inputs, query=inputs.query.detach(), key=inputs.key.detach())
        if self.recording and record:
            self._record(inputs)
        if self.capture is not None:
            self.capture(self, inputs)

    @torch.no_grad()
    def _record(self, inputs: AttentionInputs) -> None:
        # Under autocast the products would be rounded to bfloat16: statistics are always float32.
        with torch.autocast(inputs.query.device.type, enabled=False):
            self.add(self.observation.measure(inputs, self.offset, self.masks.counts_of(inputs)))

    def add(self, statistics: EnergyStatistics) -> None:
        """Add a forward pass to the statistics of the step."""
        self.statistics = statistics if self.statistics is None else self.statistics + statistics

    def recorded(self) -> EnergyStatistics:
        """Return the statistics of the last recorded step.

        Raises: RuntimeError if nothing has been recorded.
        """
        if self.statistics is None:
            raise RuntimeError(f"layer {self.layer} has not been observed yet: run a forward pass inside probe.step()")
        return self.statistics
