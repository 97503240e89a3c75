"""What keeps attention's energies bounded: normalised queries and keys, a soft cap, clipped weights.

The first two change the function that attention computes, and a saved ``config.json`` does not name the function. They
are therefore noted in the model's configuration, and ``restore_stabilisers`` puts them back on a loaded model.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natattn.attention.energy import AttentionInputs
from natattn.attention.interface import register
from natattn.attention.modules import (
    IMPLEMENTATIONS,
    NATURAL,
    STABILISERS_ATTRIBUTE,
    AttentionLayer,
    attention_layers,
    use_implementation,
)
from natattn.attention.projections import projection, query_norm_name, scale_heads

CONFIG_KEY = "natattn_stabilisers"


@dataclass(frozen=True)
class Stabilisers:
    """Changes to the energies of every attention layer.

    Attributes:
        query_key_norm: divide every query and key by its root mean square, without learned gain, after any rotary
            embedding (which does not change it); with the usual scaling |E| ≤ √head_dim (Henry et al. 2020; Dehghani et
            al. 2023 use a LayerNorm).
        softcap: c > 0 of E ← c·tanh(E/c) (Gemma 2, 2024); no fused kernel of PyTorch computes it, so that the pattern
            is held in memory, O(L²) per layer.
    """

    query_key_norm: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap={self.softcap}: must be greater than 0 and finite")

    def __bool__(self) -> bool:
        return self.query_key_norm or self.softcap is not None

    def applied_to(self, inputs: AttentionInputs) -> AttentionInputs:
        """The inputs of the softmax with these changes."""
        if self.softcap is not None:
            inputs = replace(inputs, softcap=self.softcap)
        if self.query_key_norm:
            inputs = replace(inputs, query=_unit_mean_square(inputs.query), key=_unit_mean_square(inputs.key))
        return inputs


def attach_stabilisers(model: Any, stabilisers: Stabilisers) -> None:
    """Put stabilisers on every attention layer of a transformers model, under this package's attention functions.

    Raises: ValueError for a model that has a norm or a soft cap of its own in that place, or does not dispatch by name.
    """
    layers = attention_layers(model, cross_attention=True)
    for found in layers:
        _check_absent(found, stabilisers)
    register()
    if model.config._attn_implementation not in IMPLEMENTATIONS:
        use_implementation(model, NATURAL)
    for found in layers:
        setattr(found.module, STABILISERS_ATTRIBUTE, stabilisers)
    setattr(model.config, CONFIG_KEY, asdict(stabilisers))


def saved_stabilisers(config: Any) -> Stabilisers:
    """The stabilisers that a model was saved with, from its configuration.

    Raises: ValueError where the entry is not one that ``attach_stabilisers`` writes.
    """
    entry = getattr(config, CONFIG_KEY, None)
    if entry is None:
        return Stabilisers()
    known = asdict(Stabilisers())
    softcap = entry.get("softcap") if isinstance(entry, Mapping) else None
    valid = (
        isinstance(entry, Mapping)
        and entry.keys() == known.keys()
        and isinstance(entry["query_key_norm"], bool)
        and (softcap is None or isinstance(softcap, int | float))
    )
    if not valid:
        raise ValueError(f"{CONFIG_KEY}={entry!r}: valid are the keys {', '.join(known)}")
    return Stabilisers(**entry)


def restore_stabilisers(model: Any) -> None:
    """Put the stabilisers that a loaded model was trained with back on it; nothing where there were none."""
    stabilisers = saved_stabilisers(model.config)
    if stabilisers:
        attach_stabilisers(model, stabilisers)


@torch.no_grad()
def clip_query_key_weights(model: nn.Module, maxima: Mapping[int, Tensor], threshold: float) -> dict[int, Tensor]:
    """QK-clip: where a head's largest energy exceeds the threshold, shrink its W_Q and W_K until it would not.

    With γ = min(1, threshold / max E), rows of W_Q and W_K (and of their biases) are multiplied by √γ, so that every
    energy of the head is multiplied by γ. Grouped-query heads share a key: there W_Q alone takes γ. (Kimi K2 2025,
    section 2.1.)

    Args:
        maxima: by layer, [H]: the exact largest energy of each head over the step's batch.
        threshold: in the energies' own unit, nats at T = 1; greater than 0.

    Returns: γ of every layer, [H]; 1 where nothing was changed.

    Raises: ValueError for a layer whose projections are not known, or whose queries are normalised after them.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold={threshold}: must be greater than 0 and finite")
    modules = {found.layer: found for found in attention_layers(model, cross_attention=True)}
    slices = {layer: _clippable(modules[layer], maximum.numel()) for layer, maximum in maxima.items()}
    factors = {}
    for layer, maximum in maxima.items():
        # A finite quotient everywhere: a head without any pair has maximum −inf.
        factor = torch.where(maximum > threshold, threshold / maximum.clamp_min(threshold), 1.0)
        query, key, is_grouped = slices[layer]
        for tensor in query:
            scale_heads(tensor, factor if is_grouped else factor.sqrt())
        for tensor in [] if is_grouped else key:
            scale_heads(tensor, factor.sqrt())
        factors[layer] = factor
    return factors


def check_clippable(model: nn.Module) -> None:
    """Refuse a model that ``clip_query_key_weights`` cannot work on, before it trains.

    Raises: ValueError naming the layer and why.
    """
    for found in attention_layers(model):
        _clippable(found, 1)


def _clippable(found: AttentionLayer, heads: int) -> tuple[list[Tensor], list[Tensor], bool]:
    """W_Q and W_K with their biases, and whether several query heads share a key head."""
    module = found.module
    stabilisers = vars(module).get(STABILISERS_ATTRIBUTE, Stabilisers())
    if stabilisers.query_key_norm or query_norm_name(module) is not None:
        raise ValueError(f"{found.name} normalises its queries: clipping their weights would change nothing")
    query, key = projection(module, "query"), projection(module, "key")
    if query is None or key is None:
        raise ValueError(f"{found.name}: its query and key projections were not found")
    return query, key, query[0].shape[0] != key[0].shape[0]


def _unit_mean_square(vectors: Tensor) -> Tensor:
    return nn.functional.rms_norm(vectors, vectors.shape[-1:])


def _check_absent(found: AttentionLayer, stabilisers: Stabilisers) -> None:
    module = found.module
    if stabilisers.query_key_norm and query_norm_name(module) is not None:
        raise ValueError(f"query_key_norm: {found.name} normalises its queries and keys already")
    own_cap = getattr(module, "attn_logit_softcapping", None)
    if stabilisers.softcap is not None and own_cap is not None:
        raise ValueError(f"softcap: {found.name} has a soft cap of its own, {own_cap}")
