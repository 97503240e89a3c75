"""Placebos: what attention tells an optimizer, replaced by something that looks like it and says nothing of it.

A gain that a placebo shares is not attention's. Directions do not know that they are given one.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from natattn.optim.partition import ParameterView
from natattn.randomness import addressed_seed

PlaceboKind = Literal["constant", "shuffled", "identity", "plain"]
HISTORY = 4096  # energies that the shuffled placebo draws from: those of the last steps
_OUTPUT_FACTORS = ("query_output", "key_output")
_ROLE_OF_INPUT_FACTOR = {"query_input": "query", "key_input": "key", "value_input": "value"}


class PlaceboStatistics:
    """Statistics with the information taken out.

    - constant: energies are their mean over layers and steps so far, or ``energy``; factors their mean over layers and
      heads; attention distances are all equal.
    - shuffled: energies are drawn from those of all layers and steps so far; the factors of layers and heads are
      permuted, anew at every capture; distances are permuted over heads.
    - identity: energies are 0, so that their factors are 1; attention's factors are the identity.
    - plain: attention's input factors are the covariance of the layer's plain inputs, its output factors the identity.

    Input covariances are no attention and pass through.

    Args:
        source: the probe.
        views: of the optimizer; they say which module's inputs are an attention layer's plain inputs.
        energy: of the constant placebo; None for the running mean.
        seed: of the permutations and draws, which are functions of (seed, step or capture, layer).
    """

    def __init__(
        self, source: Any, kind: PlaceboKind, views: list[ParameterView], *, energy: float | None = None, seed: int = 0
    ) -> None:
        self.source = source
        self.kind = kind
        self.energy = energy
        self.seed = seed
        self._modules = {(view.layer, str(view.role)): view.module for view in views}
        self._history = torch.zeros(0)
        self._total = torch.zeros((), dtype=torch.float64)
        self._count = 0
        self._step = -1
        self._energies: dict[int, Tensor] = {}

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers."""
        layers: list[int] = self.source.layers
        return layers

    @property
    def captures(self) -> int:
        """How often factors have been captured."""
        captures: int = self.source.captures
        return captures

    def begin(self, step: int, quantity: str | None) -> None:
        """Take this step's true energies into what the placebos are made of; once per step."""
        if quantity is None:
            return
        true = torch.stack([getattr(self.source, quantity)(layer).detach().float() for layer in self.layers])
        self._total = self._total.to(true.device) + true.double().sum()
        self._count += len(true)
        self._history = torch.cat([self._history.to(true.device), true])[-HISTORY:]
        self._step = step
        self._energies = {layer: self._energy(layer, true[0]) for layer in self.layers}

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """In place of the layer's mean |E|."""
        return self._energies[layer]

    def mean_energy(self, layer: int) -> Tensor:
        """In place of the layer's mean E."""
        return self._energies[layer]

    def attention_distance(self, layer: int) -> Tensor:
        """In place of the heads' distances."""
        true: Tensor = self.source.attention_distance(layer)
        if self.kind == "shuffled":
            return true[self._permutation(len(true), "distances", self._step, layer)]
        return torch.ones_like(true)

    def average(self, owner: str | int, name: str) -> Tensor:
        """In place of attention's factor; input covariances are the true ones."""
        true: Tensor = self.source.average(owner, name)
        if isinstance(owner, str):
            return true
        if self.kind == "constant":
            mean = torch.stack([self.source.average(layer, name).mean(0) for layer in self.layers]).mean(0)
            return mean.expand_as(true)
        if self.kind == "shuffled":
            order = self._permutation(len(self.layers), "layers", self.captures)
            other: Tensor = self.source.average(self.layers[int(order[self.layers.index(owner)])], name)
            return other[self._permutation(len(other), "heads", self.captures, owner)]
        if self.kind == "plain" and name not in _OUTPUT_FACTORS:
            covariance: Tensor = self.source.average(self._modules[owner, _ROLE_OF_INPUT_FACTOR[name]], "covariance")
            return covariance.expand_as(true)
        return torch.eye(true.shape[-1], dtype=true.dtype, device=true.device).expand_as(true)

    def state_dict(self) -> dict[str, Tensor]:
        """What has been seen so far."""
        return {"history": self._history, "total": self._total, "count": torch.tensor(self._count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state_dict`` gave."""
        self._history, self._total = state["history"].clone(), state["total"].clone()
        self._count = int(state["count"])

    def _energy(self, layer: int, like: Tensor) -> Tensor:
        if self.kind == "constant":
            mean = self._total / self._count
            return torch.full_like(like, self.energy) if self.energy is not None else mean.to(like.dtype)
        if self.kind == "shuffled":
            generator = torch.Generator().manual_seed(
                addressed_seed(self.seed, f"placebo energies {layer}", self._step)
            )
            return self._history[int(torch.randint(len(self._history), (), generator=generator))]
        return torch.zeros_like(like)

    def _permutation(self, count: int, purpose: str, *address: int) -> Tensor:
        name = " ".join([f"placebo {purpose}", *map(str, address[1:])])
        generator = torch.Generator().manual_seed(addressed_seed(self.seed, name, address[0]))
        return torch.randperm(count, generator=generator)
