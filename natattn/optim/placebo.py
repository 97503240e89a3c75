"""Placebos: attention statistics with the information about attention taken out.

A gain that a placebo shares is not due to attention. Directions cannot tell a placebo from the probe.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from natattn.distributed.ranks import Ranks
from natattn.optim.matrix import Matrix
from natattn.randomness import addressed_seed

PlaceboKind = Literal["constant", "shuffled", "identity", "plain"]
HISTORY = 4096  # energies of the last steps that the shuffled placebo draws from
_OUTPUT_FACTORS = ("query_output", "key_output")
_ROLE_OF_INPUT_FACTOR = {
    "query_input": "query",
    "query_input_traced": "query",
    "key_input": "key",
    "key_input_traced": "key",
    "value_input": "value",
}


class PlaceboStatistics:
    """Statistics of a probe, replaced by a placebo.

    - constant: energies are their mean over layers and steps so far, or ``energy``; factors their mean over layers and
      heads; attention distances are all equal.
    - shuffled: energies are drawn from those of all layers and steps so far; a layer has the factors of another layer
      with its heads permuted, again at every capture (in a model of one layer, a head has those of another head);
      distances are permuted over heads.
    - identity: energies are 0, so that their factors are 1; attention's factors are the identity.
    - plain: attention's input factors are the covariance of the layer's plain inputs, its output factors the identity;
      energies are 0.

    Covariances of plain inputs carry no attention and stay as they are.

    Args:
        source: the probe.
        matrices: of the optimizer; they map an attention layer to the modules whose inputs are its plain inputs.
        energy: of the constant placebo; None for the running mean.
        seed: of the permutations and draws, which are functions of (seed, step or capture, layer).
    """

    def __init__(
        self,
        source: Any,
        kind: PlaceboKind,
        matrices: Sequence[Matrix],
        *,
        energy: float | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.kind = kind
        self.energy = energy
        self.seed = seed
        self._modules = {(matrix.layer, str(matrix.role)): matrix.module for matrix in matrices}
        self._seen: dict[str, _Seen] = {}  # by quantity
        self._step = -1
        self._energies: dict[tuple[str, int], Tensor] = {}

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers."""
        layers: list[int] = self.source.layers
        return layers

    @property
    def recorded_layers(self) -> list[int]:
        """Indices of the layers that the last recorded step reached."""
        layers: list[int] = self.source.recorded_layers
        return layers

    @property
    def captures(self) -> int:
        """Number of captures of factors so far."""
        captures: int = self.source.captures
        return captures

    @property
    def skipped(self) -> dict[str, int]:
        """Number of captures that were left out, by factor."""
        skipped: dict[str, int] = getattr(self.source, "skipped", {})
        return skipped

    def reduce(self, ranks: Ranks) -> None:
        """Combine in the probe what the ranks of a process group have seen."""
        self.source.reduce(ranks)

    def begin(self, step: int, quantities: Collection[str]) -> None:
        """Record this step's true energies, from which those of the placebo are made; once per step."""
        self._step = step
        self._energies = {}
        for name in quantities if self.recorded_layers else ():
            true = torch.stack([getattr(self.source, name)(layer).detach().float() for layer in self.recorded_layers])
            seen = self._seen.setdefault(name, _Seen(true.new_zeros(0), true.new_zeros((), dtype=torch.float64)))
            seen.enter(true)
            self._energies |= {(name, layer): self._energy(name, layer, true[0]) for layer in self.recorded_layers}

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Return the replacement of the layer's mean |E|."""
        return self._energies["mean_absolute_energy", layer]

    def mean_energy(self, layer: int) -> Tensor:
        """Return the replacement of the layer's mean E."""
        return self._energies["mean_energy", layer]

    def attention_distance(self, layer: int) -> Tensor:
        """Return the replacement of the heads' distances."""
        true: Tensor = self.source.attention_distance(layer)
        if self.kind == "shuffled":
            return true[self._permutation(len(true), "distances", self._step, layer)]
        return torch.ones_like(true)

    def average(self, owner: str | int, name: str) -> Tensor | None:
        """Return the replacement of an attention factor; covariances of plain inputs are the true ones."""
        true: Tensor | None = self.source.average(owner, name)
        if isinstance(owner, str) or true is None:
            return true
        if self.kind == "constant":
            return torch.stack([factor.mean(0) for factor in self._known(name).values()]).mean(0).expand_as(true)
        if self.kind == "shuffled":
            known = self._known(name)
            layers = list(known)
            if len(layers) == 1:
                return true[self._shift(len(true), "heads", self.captures)]
            other = known[layers[int(self._shift(len(layers), "layers", self.captures)[layers.index(owner)])]]
            return other[self._permutation(len(other), "heads", self.captures, owner)]
        if self.kind == "plain" and name not in _OUTPUT_FACTORS:
            plain: Tensor | None = self.source.average(self._modules[owner, _ROLE_OF_INPUT_FACTOR[name]], "covariance")
            return None if plain is None else plain.expand_as(true)
        return torch.eye(true.shape[-1], dtype=true.dtype, device=true.device).expand_as(true)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the recorded energies as tensors under flat names."""
        return {f"{name}.{part}": value for name, seen in self._seen.items() for part, value in vars(seen).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        names = dict.fromkeys(name.rpartition(".")[0] for name in state)
        self._seen = {
            name: _Seen(*(state[f"{name}.{part}"].clone() for part in ("history", "total", "count"))) for name in names
        }

    def _known(self, name: str) -> dict[int, Tensor]:
        """Return the true factor of every layer that has one."""
        factors: dict[int, Tensor | None] = {layer: self.source.average(layer, name) for layer in self.layers}
        return {layer: factor for layer, factor in factors.items() if factor is not None}

    def _energy(self, name: str, layer: int, like: Tensor) -> Tensor:
        seen = self._seen[name]
        if self.kind == "constant":
            mean = seen.total / seen.count.to(seen.total.device)
            return torch.full_like(like, self.energy) if self.energy is not None else mean.to(like.dtype)
        if self.kind == "shuffled":
            generator = self._generator("energies", self._step, layer)
            return seen.history[int(torch.randint(len(seen.history), (), generator=generator))]
        return torch.zeros_like(like)

    def _permutation(self, count: int, purpose: str, *address: int) -> Tensor:
        return torch.randperm(count, generator=self._generator(purpose, *address))

    def _shift(self, count: int, purpose: str, *address: int) -> Tensor:
        """Return a rotation by 1 to count − 1, a permutation without fixed points."""
        if count == 1:
            return torch.zeros(1, dtype=torch.int64)
        by = int(torch.randint(1, count, (), generator=self._generator(purpose, *address)))
        return torch.arange(count).roll(by)

    def _generator(self, purpose: str, *address: int) -> torch.Generator:
        name = " ".join([f"placebo {purpose}", *map(str, address[1:])])
        return torch.Generator().manual_seed(addressed_seed(self.seed, name, address[0]))


@dataclass(eq=False)
class _Seen:
    """The last values of a quantity, and the sum and the number of all of them."""

    history: Tensor
    total: Tensor
    count: Tensor = field(default_factory=lambda: torch.tensor(0))

    def enter(self, values: Tensor) -> None:
        """Enter one step's values of all layers."""
        self.history = torch.cat([self.history.to(values.device), values])[-HISTORY:]
        self.total = self.total.to(values.device) + values.double().sum()
        self.count = self.count + len(values)
