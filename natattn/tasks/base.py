"""The interface between a task and the training loop, and what all tasks share."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from natattn.distributed.ranks import Ranks
from natattn.models.settings import ModelSettings

# Opaque to the loop: a tensor, or several by name, whose first dimension is the example.
Batch = Tensor | dict[str, Tensor]
# Context with the precision of a forward pass.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
HeldOut = Literal["validation", "test"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchSlice:
    """One accumulation slice of a rank's part of a batch."""

    rank: int = 0
    world_size: int = 1
    accumulation_index: int = 0
    accumulation_steps: int = 1


class Task(Protocol):
    """A kind of training on a corpus. Losses are in nats per ``unit``.

    Attributes:
        kind: name in ``task=``.
        unit: what a loss averages over and throughput counts: token, image or pair.
        units_per_step: number of units in one update.
        fingerprint: hash of all data that models are trained and evaluated on.
        has_test: whether there is a test split.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]

    @property
    def units_per_step(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def has_test(self) -> bool: ...

    def initial_model(self, model: ModelSettings) -> nn.Module:
        """Build an arm's model in float32 on the CPU with plain softmax attention; equal for equal seeds."""

    def batch(self, step: int, part: BatchSlice) -> Batch:
        """Return a part of a step's training batch on the CPU; a function of (seed, step, sample index) only."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward pass."""

    def loss(self, outputs: Any, batch: Batch, model: Any) -> Tensor:
        """Return the mean loss of a batch in nats from the model's outputs for its ``inputs``."""

    def evaluate(
        self, model: Any, split: HeldOut, *, autocast: Autocast, batch_size: int, device: torch.device, ranks: Ranks
    ) -> dict[str, float]:
        """Return metrics over a whole split by name, ``loss`` first. All ranks call this, without gradients."""

    def probe_inputs(self, device: torch.device) -> dict[str, Any]:
        """Return model inputs of a fixed validation batch, whose attention is observed at every evaluation."""

    def examples(self, outputs: Any) -> Tensor:
        """Return the model's output for each example, [examples, ...], for the check that examples are independent."""

    def data_summary(self) -> dict[str, Any]:
        """Return the data's entry in run.json: name, fingerprint, sizes, and the losses of trivial predictors."""

    def save_beside(self, folder: Path) -> None:
        """Write what using a saved model needs: its tokenizer, its image preprocessing."""


class CorpusTask:
    """Properties of a task on a corpus with train, validation and perhaps test splits."""

    corpus: Any
    batch_size: int

    @property
    def units_per_step(self) -> int:
        """Number of examples in one update."""
        return self.batch_size

    @property
    def fingerprint(self) -> str:
        """Hash of the corpus, its split rule and its preprocessing."""
        return str(self.corpus.fingerprint)

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split."""
        return self.corpus.test is not None

    def held_out(self, split: HeldOut) -> Any:
        """Return a split of the corpus, which must exist."""
        data = self.corpus.validation if split == "validation" else self.corpus.test
        assert data is not None
        return data


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device without synchronizing."""
    if device.type != "cuda":
        return batch
    if isinstance(batch, Tensor):
        return batch.pin_memory().to(device, non_blocking=True)
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def round_robin(items: Iterable[Item], ranks: Ranks) -> Iterator[tuple[Item, bool]]:
    """Yield this rank's items with whether each counts; every rank gets equally many.

    In the last round, ranks without an item repeat the last one and do not count it: forward passes of a sharded model
    need every rank.
    """
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, ranks.size)):
        yield batch[min(ranks.rank, len(batch) - 1)], ranks.rank < len(batch)


class MetricSums:
    """Sums over the batches of a split, in float64 on the device, added over the ranks at the end."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self._totals: dict[str, Tensor] = {}
        self._device, self._ranks = device, ranks

    def add(self, values: Mapping[str, Tensor | int], *, counted: bool = True) -> None:
        """Add a batch's sums; one that is not ``counted`` only introduces its names and shapes."""
        for name, value in values.items():
            if name not in self._totals:
                shape = value.shape if isinstance(value, Tensor) else ()
                self._totals[name] = torch.zeros(shape, dtype=torch.float64, device=self._device)
            if counted:
                self._totals[name] += value

    def read(self) -> dict[str, Tensor]:
        """Return the sums over all batches and ranks, on the CPU."""
        totals = self._ranks.sum(list(self._totals.values()))
        return {name: total.cpu() for name, total in zip(self._totals, totals, strict=True)}
