"""One attention layer under observation: what is measured of it, and how."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from natattn.attention.dense import dense_statistics
from natattn.attention.energy import AttentionInputs
from natattn.attention.quantities import terms_of
from natattn.attention.statistics import EnergyStatistics
from natattn.attention.streaming import Counts, sampled_statistics, streaming_statistics

ExactMethod = Literal["streaming", "dense"]


@dataclass(frozen=True)
class Observation:
    """What is measured of a layer, and how; see ``AttentionProbe`` for the fields."""

    quantities: tuple[str, ...]
    exact: tuple[str, ...]
    row_count: int | None
    exact_method: ExactMethod

    def __post_init__(self) -> None:
        terms_of(self.quantities)
        for name in self.exact:
            if name not in self.quantities:
                raise ValueError(f"exact={name!r} is not among the quantities that are recorded")
        if self.row_count is not None and self.row_count < 1:
            raise ValueError(f"row_count={self.row_count}: must be at least 1, or None for all rows")
        if self.exact_method == "dense" and self.row_count is not None:
            raise ValueError("exact_method='dense' measures all rows: it needs row_count=None")

    def measure(self, inputs: AttentionInputs, offset: float, counts: Counts) -> EnergyStatistics:
        """Statistics of one forward pass of one layer."""
        if self.row_count is None:
            if self.exact_method == "dense":
                return dense_statistics(inputs, self.quantities)
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
    """What a mask says, worked out once for all the layers that share it in a forward pass.

    How many pairs and rows it allows, and what it is without the rows of padded queries.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._counts: Counts | None = None
        self._unpadded: tuple[Tensor, int, Tensor | None] | None = None

    def of(self, inputs: AttentionInputs) -> Counts:
        """``inputs.count_pairs_and_rows()``, from memory where it was counted just before."""
        mask = inputs.attention_mask
        # Without a mask there is nothing to count; the compiler merges equal counts by itself.
        if mask is None or torch.compiler.is_compiling():
            return inputs.count_pairs_and_rows()
        key = (mask, _version(mask), inputs.batch, inputs.length, inputs.key_length)
        if not self._key or self._key[0] is not mask or self._key[1:] != key[1:]:
            self._key, self._counts = key, inputs.count_pairs_and_rows()
        assert self._counts is not None
        return self._counts

    def unpadded(self, inputs: AttentionInputs) -> AttentionInputs:
        """``inputs.without_padded_rows()``, the mask from memory where it was made just before."""
        mask = inputs.attention_mask
        if mask is None or torch.compiler.is_compiling():
            return inputs.without_padded_rows()
        key = (mask, _version(mask))
        if self._unpadded is None or self._unpadded[0] is not mask or self._unpadded[1] != key[1]:
            self._unpadded = (*key, inputs.without_padded_rows().attention_mask)
        return replace(inputs, attention_mask=self._unpadded[2])

    def clear(self) -> None:
        """Let the mask go."""
        self._key, self._counts, self._unpadded = (), None, None


@dataclass
class AttentionSite:
    """One attention layer under observation.

    It hangs on the layer's module and does not know it: a cycle would keep a discarded model's memory.
    """

    layer: int
    name: str
    observation: Observation
    counts: MaskCache = field(repr=False)
    is_cross_attention: bool = False
    offset: float = 0.5
    recording: bool = False
    capture: "Callable[[AttentionSite, AttentionInputs], None] | None" = field(default=None, repr=False)
    statistics: EnergyStatistics | None = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, object]) -> "AttentionSite":
        """A copy of the model is not observed: it would speak to the probe of the original."""
        return replace(self, counts=MaskCache(), recording=False, capture=None)

    def observe(self, inputs: AttentionInputs, *, record: bool = True) -> None:
        """Tell whoever looks at this forward pass about it, unless it repeats one for activation checkpointing.

        Padded queries are not shown.

        Args:
            record: False where its statistics have been added already.
        """
        if not (self.recording or self.capture is not None):
            return
        # A compiled checkpoint recomputes the traced graph and not this code.
        if not torch.compiler.is_compiling() and _inside_backward():
            return
        if not self.is_cross_attention:
            inputs = self.counts.unpadded(inputs)
        inputs = replace(inputs, query=inputs.query.detach(), key=inputs.key.detach())
        if self.recording and record:
            self._record(inputs)
        if self.capture is not None:
            self.capture(self, inputs)

    @torch.no_grad()
    def _record(self, inputs: AttentionInputs) -> None:
        """Add this forward pass to the statistics of the step."""
        # Under autocast the products would be rounded to bfloat16: statistics are float32 always.
        with torch.autocast(inputs.query.device.type, enabled=False):
            statistics = self.observation.measure(inputs, self.offset, self.counts.of(inputs))
        self.add(statistics)

    def add(self, statistics: EnergyStatistics) -> None:
        """Add a forward pass to the statistics of the step."""
        self.statistics = statistics if self.statistics is None else self.statistics + statistics

    def recorded(self) -> EnergyStatistics:
        """What was last recorded.

        Raises: RuntimeError when that is nothing.
        """
        if self.statistics is None:
            raise RuntimeError(f"layer {self.layer} has not been observed yet: run a forward pass inside probe.step()")
        return self.statistics


def _version(mask: Tensor) -> int:
    """Changes when the mask is changed in place; inference tensors do not count that."""
    return 0 if mask.is_inference() else mask._version


def _inside_backward() -> bool:
    """Whether this thread is running an autograd backward pass; a forward made there is a recomputation."""
    return torch._C._current_graph_task_id() != -1
