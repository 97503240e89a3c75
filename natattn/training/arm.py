"""An arm is a model, its attention probe and its optimizer; the arms of a run start from the same weights."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natattn.attention.probe import AttentionProbe
from natattn.attention.stabilisers import clip_query_key_weights
from natattn.attention.types.tempered import TemperedAttention
from natattn.distributed.ranks import Ranks, full, local
from natattn.models.implicit_masks import one_sequence_per_row
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.randomness import addressed_seed
from natattn.tasks.base import Batch, Task

Status = Literal["running", "diverged"]


class Stopwatch:
    """Measures seconds of training steps without synchronizing with the GPU at every step."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._cuda = device.type == "cuda"
        self._pending: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Add the time spent in the block."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._pending.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - begin

    def read(self) -> float:
        """Return the total so far; synchronizes with the GPU."""
        for start, end in self._pending:
            end.synchronize()
            self.seconds += start.elapsed_time(end) / 1000
        self._pending.clear()
        return self.seconds


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a batch (nats) and norm of its gradient before clipping, scalars on the device."""

    loss: Tensor
    gradient_norm: Tensor


@dataclass
class Arm:
    """A model in training with its attention probe and optimizer.

    Attributes:
        forward: called for training in place of the model, for example its compiled or distributed version; None for
            the model.
        without_sync: context in which backward passes accumulate gradients without averaging them over the ranks.
        clip_energy: QK-clip's threshold in nats.
        patterns: attention patterns on some rows of the probe batch at the last evaluation, by layer.
        peak_memory: bytes of GPU memory at the peak of this arm's steps; stays 0 on the CPU.
    """

    name: str
    model: Any  # a transformers model of the task
    task: Task
    optimizer: DirectionalOptimizer
    probe: AttentionProbe | None
    device: torch.device
    seed: int
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    clip_norm: float | None = None
    ranks: Ranks = field(default_factory=Ranks)
    forward: Callable[..., Any] | None = None
    without_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    tempered: TemperedAttention | None = None
    clip_energy: float | None = None
    status: Status = "running"
    cause: str | None = None
    stopwatch: Stopwatch = field(init=False)
    optimizer_stopwatch: Stopwatch = field(init=False)
    patterns: dict[int, Tensor] = field(default_factory=dict)
    peak_memory: int = 0
    _rates: list[float] = field(init=False)
    _parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.stopwatch, self.optimizer_stopwatch = Stopwatch(self.device), Stopwatch(self.device)
        self._parameters = list(self.model.parameters())
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def active(self) -> bool:
        """Return whether the arm still trains."""
        return self.status == "running"

    def at_step(self, step: int, steps: int) -> None:
        """Set the temperature of tempered attention for this step."""
        if self.tempered is not None:
            self.tempered.update(self.model, step, steps)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch in nats."""
        forward = self.model if self.forward is None else self.forward
        with self.autocast(), one_sequence_per_row():
            outputs = forward(**self.task.inputs(batch))
        return self.task.loss(outputs, batch, self.model)

    def train_step(self, slices: Sequence[Batch], step: int, learning_rate_factor: float) -> StepResult:
        """Update the weights once, from a batch given as accumulation slices of equal size.

        Dropout is seeded by (seed, step, rank), so that all arms drop the same units.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with self.stopwatch.running():
            if not self.model.training:  # train() visits every module
                self.model.train()
            self._seed_dropout(step)
            total = torch.zeros((), device=self.device)
            with self.probe.step(step) if self.probe else contextlib.nullcontext():
                for index, batch in enumerate(slices):
                    with self.without_sync() if index + 1 < len(slices) else contextlib.nullcontext():
                        loss = self.loss(batch) / len(slices)
                        loss.backward()  # type: ignore[no-untyped-call]
                    total = total + loss.detach()  # becomes float64 if the loss is
            gradient_norm = self._clip_gradients()
            self.set_rates(learning_rate_factor)
            with self.optimizer_stopwatch.running():
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.clip_energies(step)
        if self.device.type == "cuda":
            self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(self.device))
        return StepResult(total, gradient_norm if self.ranks.size == 1 else full(gradient_norm))

    def _seed_dropout(self, step: int) -> None:
        rank = (self.ranks.rank,) if self.ranks.rank else ()
        seed = addressed_seed(self.seed, "dropout", step, *rank)
        # torch.manual_seed also visits every device backend, which takes half a millisecond.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient by its norm; returns the norm before clipping."""
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
        # On the CPU comparing is cheaper than scaling by 1; on a GPU it would synchronize.
        if self.clip_norm is not None and (norm.device.type != "cpu" or not bool(norm <= self.clip_norm)):
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def set_rates(self, learning_rate_factor: float) -> None:
        """Multiply the base learning rate of every parameter group by the schedule's factor."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * learning_rate_factor

    def clip_energies(self, step: int) -> None:
        """Apply QK-clip on the steps that the probe records."""
        if self.clip_energy is not None and self.probe is not None and step % self.probe.every == 0:
            maxima = {layer: self.probe.statistics(layer)["maximum"] for layer in self.probe.layers}
            clip_query_key_weights(self.model, maxima, self.clip_energy)

    @property
    def base_learning_rate(self) -> float:
        """Learning rate of the first parameter group before the schedule's factor."""
        return float(self._rates[0])

    def diverge(self, step: int, cause: str) -> None:
        """Stop training the arm."""
        self.status, self.cause = "diverged", f"{cause} at step {step}"

    def unique_tensors(self) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by name, tied ones once."""
        tensors: dict[str, Tensor] = dict(self.model.named_parameters())
        persistent = self.model.state_dict().keys()
        tensors.update({name: buffer for name, buffer in self.model.named_buffers() if name in persistent})
        return tensors


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of names and values of all parameters; it identifies runs with equal initial weights."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(full(parameter.detach()).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def identical(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models have bitwise equal weights; of sharded weights, this rank's shards."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(local(a), local(b)) for a, b in pairs)
