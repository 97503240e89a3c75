"""The optimizer of *Attention-Informed Optimization*: ``AttentionInformedOptimizer(model.parameters())``."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from natattn.attention.probe import AttentionProbe
from natattn.optim.directions.adam import Adam
from natattn.optim.directions.base import Direction, Statistics
from natattn.optim.directions.energy_scaled import EnergyScaled
from natattn.optim.matrix import Matrix
from natattn.optim.optimizer import DirectionalOptimizer
from natattn.optim.partition import partition
from natattn.published.attention import blocks_of
from natattn.published.block_energies import BlockEnergies

Parameters = Iterable[torch.Tensor] | Iterable[tuple[str, torch.Tensor]] | nn.Module


class AttentionInformedOptimizer(DirectionalOptimizer):
    """AdamW whose gradients of a block's parameters are multiplied by 1 + tanh(energy_scale · mean|E|) of that block.

    This is ``optim=aif`` with the published constants; weight decay is for matrices only. AdamW is invariant to a
    constant scale of the gradient, so only changes of the factor over time matter.

    Args:
        params: a model, or its ``parameters()`` or ``named_parameters()``.
        lr, betas, eps, weight_decay: of AdamW.
        energy_scale: s ≥ 0; 0 is plain AdamW.
        probe: the probe whose statistics are read. None finds the ``GPT2NaturalAttentionBlock`` modules that the
            parameters belong to and reads their last forward pass.
        masked_energies_saturate: count masked pairs as the published code did, see ``BlockEnergies``; only without a
            probe.

    Raises: ValueError for values out of range, for parameters that belong to no block if there is no probe, and for a
        probe of another model.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        energy_scale: float = 0.1,
        probe: AttentionProbe | None = None,
        *,
        masked_energies_saturate: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("energy_scale", energy_scale)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: must be at least 0 and finite")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: must be two numbers, each at least 0 and below 1")
        if probe is not None and masked_energies_saturate:
            raise ValueError("masked_energies_saturate=True: a probe never counts masked pairs. Remove one of the two")
        parameters = _listed(params)
        if probe is None:
            statistics, layer_of = _of_blocks(parameters, masked_energies_saturate)
        else:
            statistics, layer_of = probe, _layers_of_probe(parameters, probe)
        # One elementwise direction serves every role, so that any role will do.
        matrices = [Matrix(name, p, "vector", layer_of.get(id(p))) for name, p in parameters.items()]
        adam = Adam.model_construct(betas=betas, eps=eps)  # not validated: the published eps may be 0
        directions: dict[str, Direction] = {"default": EnergyScaled(energy_scale=energy_scale, inner=adam)}
        super().__init__(matrices, directions, learning_rate=lr, weight_decay=weight_decay, statistics=statistics)


def _listed(params: Parameters) -> dict[str, nn.Parameter]:
    """Return {name: parameter}, each parameter once, in order; those without a name are numbered."""
    entries = list(params.named_parameters() if isinstance(params, nn.Module) else params)
    named: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        name, parameter = entry if isinstance(entry, tuple) else (f"parameter {index}", entry)
        if not isinstance(parameter, torch.Tensor):
            raise ValueError(
                f"params: holds a {type(parameter).__name__}. Use a model, its parameters() or named_parameters() "
                "(groups of parameters are not supported)"
            )
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named[name] = parameter  # type: ignore[assignment]
    if not named:
        raise ValueError("params: no parameters; an iterator can be read only once")
    return named


def _of_blocks(parameters: dict[str, nn.Parameter], saturate: bool) -> tuple[Statistics, dict[int, int]]:
    """Return the energies of the blocks that own the parameters, numbered in order, and each parameter's block."""
    blocks = blocks_of(parameters.values())
    if not blocks:
        raise ValueError(
            "no attention energies to read: these parameters belong to no GPT2NaturalAttentionBlock. "
            "Use probe=AttentionProbe(model)"
        )
    energies = BlockEnergies({n: block.attn for n, block in enumerate(blocks)}, masked_energies_saturate=saturate)
    return energies, {id(p): layer for layer, block in enumerate(blocks) for p in block.parameters()}


def _layers_of_probe(parameters: dict[str, nn.Parameter], probe: AttentionProbe) -> dict[int, int]:
    """Return the layer of each parameter of the probe's model that is inside a block."""
    matrices = partition(probe.model)
    if not {id(matrix.parameter) for matrix in matrices} & {id(parameter) for parameter in parameters.values()}:
        raise ValueError(f"probe: observes a {type(probe.model).__name__} that none of these parameters belong to")
    return {id(matrix.parameter): matrix.layer for matrix in matrices if matrix.layer is not None}
