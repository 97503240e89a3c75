"""What a task is: the data, the model, the loss and the metrics; the loop, arms, probes and optimizers know no more."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from natattn.distributed.ranks import Ranks
from natattn.models.gpt2 import ModelSettings

# What one step is computed from, opaque to the loop: a tensor, or several by name. The first dimension counts examples.
Batch = Tensor | dict[str, Tensor]
# Opens the run's precision for a forward pass.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
HeldOut = Literal["validation", "test"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchSlice:
    """Which part of a step's batch: those of a rank, and of them one accumulation slice."""

    rank: int = 0
    world_size: int = 1
    accumulation_index: int = 0
    accumulation_steps: int = 1


class Task(Protocol):
    """One kind of training, on one data set. Losses are in nats per ``unit``.

    Attributes:
        kind: the name in ``task=``.
        unit: what a loss is the mean over and what speed counts: token, image or pair.
        units_per_step: how many of them one update sees.
        fingerprint: hash of everything that is fed to a model.
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
        """An arm's model in float32 on the CPU, with plain softmax attention; the same for the same seed."""

    def batch(self, step: int, part: BatchSlice) -> Batch:
        """A part of a step's training batch, on the host; a function of (seed, step, sample) alone."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass."""

    def loss(self, outputs: Any, batch: Batch, model: Any) -> Tensor:
        """Mean loss of a batch in nats, from what the model returned for its ``inputs``."""

    def evaluate(
        self, model: Any, split: HeldOut, *, autocast: Autocast, batch_size: int, device: torch.device, ranks: Ranks
    ) -> dict[str, float]:
        """Metrics of a model over a whole split by name, ``loss`` the first; called by all ranks, without gradients."""

    def probe_inputs(self, device: torch.device) -> dict[str, Any]:
        """Inputs of a fixed batch of the validation split, whose attention is observed at every evaluation."""

    def examples(self, outputs: Any) -> Tensor:
        """What the model says of each example, [examples, anything]: what a check compares."""

    def data_summary(self) -> dict[str, Any]:
        """What run.json says of the data: its name, its fingerprint, and what a model knows that has learned little."""

    def save_beside(self, folder: Path) -> None:
        """Write what a saved model needs to be used: its tokenizer, how its images are scaled."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device without making the host wait."""
    if device.type != "cuda":
        return batch
    if isinstance(batch, Tensor):
        return batch.pin_memory().to(device, non_blocking=True)
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def round_robin(items: Iterable[Item], ranks: Ranks) -> Iterator[tuple[Item, bool]]:
    """(item, whether it counts) of this rank's items; as many on every rank.

    Ranks take turns. Where there are none left for some, they take the last one beside the others and do not count it:
    the forward passes of a model in parts need every rank.
    """
    remaining = iter(items)
    while turn := list(itertools.islice(remaining, ranks.size)):
        yield turn[min(ranks.rank, len(turn) - 1)], ranks.rank < len(turn)


class MetricSums:
    """Sums over a split's batches, in float64 on the device; ranks add theirs at the end."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self._totals: dict[str, Tensor] = {}
        self._device, self._ranks = device, ranks

    def add(self, values: Mapping[str, Tensor | int], *, counted: bool = True) -> None:
        """Add a batch's sums; one that is not ``counted`` says only what names there are."""
        for name, value in values.items():
            if name not in self._totals:
                shape = value.shape if isinstance(value, Tensor) else ()
                self._totals[name] = torch.zeros(shape, dtype=torch.float64, device=self._device)
            if counted:
                self._totals[name] += value

    def read(self) -> dict[str, Tensor]:
        """The sums over all batches of all ranks, on the CPU."""
        totals = self._ranks.sum(list(self._totals.values()))
        return {name: total.cpu() for name, total in zip(self._totals, totals, strict=True)}
