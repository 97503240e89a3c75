"""The energies of the paper's blocks as an optimizer reads them: straight from the last forward, without a probe."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import attention_layers
from natattn.published.attention import NaturalAttention

MASK_VALUE = -1e9


class BlockEnergies:
    """Mean |E| of each layer at its last forward; answers what directions that read attention ask.

    With gradient accumulation that is the last micro-batch, as published; an ``AttentionProbe`` has the whole step.

    Args:
        layers: the attention of each layer, by layer index.
        masked_energies_saturate: False: the mean over allowed pairs. True: what the published code computed when it was
            given a mask, the mean of |E + mask| over all pairs with −1e9 on the masked ones, so that under any mask
            the factor 1 + tanh(energy_scale · mean) is 2. Without a mask the two are equal.
    """

    def __init__(self, layers: Mapping[int, NaturalAttention], *, masked_energies_saturate: bool = False) -> None:
        self._layers = dict(layers)
        self.masked_energies_saturate = masked_energies_saturate
        self._known: dict[int, tuple[AttentionInputs, Tensor]] = {}  # an optimizer asks once per parameter group

    @classmethod
    def of(cls, model: nn.Module, *, masked_energies_saturate: bool = False) -> Self:
        """Return the energies of all published attention layers of a model.

        Raises: ValueError where there is none.
        """
        layers = {
            layer.layer: layer.module for layer in attention_layers(model) if isinstance(layer.module, NaturalAttention)
        }
        if not layers:
            raise ValueError(f"{type(model).__name__} has no NaturalAttention whose energies could be read")
        return cls(layers, masked_energies_saturate=masked_energies_saturate)

    @property
    def layers(self) -> list[int]:
        """Indices of the layers."""
        return list(self._layers)

    @property
    def recorded_layers(self) -> list[int]:
        """All of them: every block has run in a forward pass of the model."""
        return self.layers

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Mean of |E| over heads and pairs, a scalar on the model's device.

        Raises: RuntimeError before the first forward.
        """
        attention = self._layers[layer]
        known = self._known.get(layer)
        if known is None or known[0] is not attention.observed:
            measure = _mean_with_mask_values if self.masked_energies_saturate else _mean_over_allowed_pairs
            known = self._known[layer] = attention.observed, measure(attention)
        return known[1]


def _mean_over_allowed_pairs(attention: NaturalAttention) -> Tensor:
    return attention.energy_statistics(("mean_absolute_energy",))["mean_absolute_energy"].mean()


def _mean_with_mask_values(attention: NaturalAttention) -> Tensor:
    """Mean of |E + mask| over all pairs; holds the L×L matrix, as the published code did."""
    energies = attention.energies
    rows_L = torch.arange(energies.shape[2], device=energies.device)
    allowed = attention.observed.allowed(rows_L)
    return torch.where(allowed, energies, energies + MASK_VALUE).abs().mean()
