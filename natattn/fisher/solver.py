"""Kronecker factors of one layer with their damped inverse roots, and what is solved with these."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from torch import Tensor

from natattn.fisher.kronecker import FactorName
from natattn.fisher.roots import RootMethod, inverse_square_root
from natattn.fisher.running import RunningAverage

Projection = Literal["query", "key", "value"]
SIDES: dict[Projection, tuple[FactorName | None, FactorName]] = {
    "query": ("query_output", "query_input"),
    "key": ("key_output", "key_input"),
    "value": (None, "value_input"),  # S_V is the gradient's own business, not attention's
}


@dataclass(eq=False)
class _Running(RunningAverage):
    """An average with its root.

    Attributes:
        root: inverse square root of the damped average as of the last good refresh; the identity before the first.
        failed: per head, refreshes that gave no root.
    """

    root: Tensor
    failed: Tensor

    @classmethod
    def start(cls, factor: Tensor) -> Self:
        """Nothing seen yet."""
        heads, dim, _ = factor.shape
        root = torch.eye(dim, dtype=factor.dtype, device=factor.device).repeat(heads, 1, 1)
        start = RunningAverage.start(factor)
        return cls(start.total, start.weight, start.skipped, root, torch.zeros_like(start.skipped))

    def refresh(self, damping: float | Tensor, method: RootMethod) -> None:
        """A head whose decomposition fails keeps its root. A damping per head makes one root per head."""
        root, good = inverse_square_root(self.average(), damping, method)
        good = good & (self.weight > 0)
        self.root = torch.where(good[:, None, None], root, self.root)
        self.failed = self.failed + ~good


class KroneckerFactors:
    """What an optimizer keeps of one attention layer's Kronecker factors.

    Heads are batched everywhere; a factor whose first dimension is 1 is shared by the heads. Until a head's factors
    have been finite once, and for a side whose factor is never given, the identity stands for the inverse.

    Args:
        decay: of the exponential averages, in [0, 1); they are bias-corrected.
        damping: > 0, in units of each factor's mean eigenvalue; a tensor [heads] damps every head by its own, where
            there are as many key heads as query heads. May be changed; the next refresh uses it.
        refresh_every: updates from one decomposition to the next, the first being at the first update.
        method: see ``inverse_square_root``.

    Raises: ValueError for arguments out of range.
    """

    def __init__(
        self, *, decay: float, damping: float | Tensor, refresh_every: int, method: RootMethod = "automatic"
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be in [0, 1)")
        if not bool((torch.as_tensor(damping) > 0).all()):
            raise ValueError(f"damping={damping}: must be above 0, there is no inverse without it")
        if refresh_every < 1:
            raise ValueError(f"refresh_every={refresh_every}: must be at least 1")
        self.decay = decay
        self.damping = damping
        self.refresh_every = refresh_every
        self.method = method
        self.updates = 0
        self._running: dict[FactorName, _Running] = {}

    def update(self, factors: Mapping[FactorName, Tensor]) -> None:
        """Enter one step's factors, as ``kronecker_factors`` returns them, and refresh the roots when that is due.

        With several ranks, average the factors over them first, so that all keep the same.
        """
        for name, factor in factors.items():
            if name not in self._running:
                self._running[name] = _Running.start(factor)
            self._running[name].enter(factor, self.decay)
        if self.updates % self.refresh_every == 0:
            self.refresh()
        self.updates += 1

    def refresh(self) -> None:
        """Decompose the averages now."""
        for running in self._running.values():
            running.refresh(self.damping, self.method)

    def average(self, name: FactorName) -> Tensor:
        """The factor's bias-corrected average, [heads or 1, dim, dim]. Raises KeyError if it was never given."""
        return self._running[name].average()

    def inverse_root(self, name: FactorName) -> Tensor:
        """(factor + damping · mean eigenvalue · I)^(−1/2) as of the last refresh, [heads or 1, dim, dim]."""
        return self._running[name].root

    def inverse(self, name: FactorName) -> Tensor:
        """The square of ``inverse_root``."""
        root = self._running[name].root
        return root @ root

    def solve(self, projection: Projection, matrix_HDN: Tensor) -> Tensor:
        """S⁻¹ M A⁻¹ per head, damped: the solution U of S U A = M, in the dtype of M, [heads, head_dim, N]."""
        return self._apply(projection, matrix_HDN, lambda root, matrix: root @ (root @ matrix))

    def whiten(self, projection: Projection, matrix_HDN: Tensor) -> Tensor:
        """S^(−1/2) M A^(−1/2) per head, damped, in the dtype of M, [heads, head_dim, N]."""
        return self._apply(projection, matrix_HDN, torch.matmul)

    def _apply(
        self, projection: Projection, matrix_HDN: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        output_side, input_side = SIDES[projection]
        result = matrix_HDN
        if output_side in self._running:
            root = self._running[output_side].root
            result = multiply(root, result.to(root.dtype))
        if input_side in self._running:
            root = self._running[input_side].root
            result = multiply(root, result.to(root.dtype).mT).mT  # roots are symmetric
        return result.to(matrix_HDN.dtype)

    @property
    def skipped(self) -> dict[FactorName, Tensor]:
        """Per factor and head, how many updates were left out because they were not finite; int64 [heads or 1]."""
        return {name: running.skipped for name, running in self._running.items()}

    @property
    def failed(self) -> dict[FactorName, Tensor]:
        """Per factor and head, how many refreshes kept the previous root; int64 [heads or 1]."""
        return {name: running.failed for name, running in self._running.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that was accumulated, as tensors under flat names."""
        state = {"updates": torch.tensor(self.updates)}
        for name, running in self._running.items():
            state |= {f"{name}.{field.name}": getattr(running, field.name) for field in fields(running)}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``state_dict``, on the device where its tensors are."""
        self.updates = int(state["updates"])
        names: list[FactorName] = [name for sides in SIDES.values() for name in sides if name is not None]
        self._running = {
            name: _Running(**{field.name: state[f"{name}.{field.name}"].clone() for field in fields(_Running)})
            for name in names
            if f"{name}.total" in state
        }
