"""Stabilisers keep attention's energies bounded: normalised queries and keys, a soft cap, clipped weights.

The first two change the function that attention computes, and a saved ``config.json`` does not name the function. They
are therefore recorded in the model's configuration, and ``restore_stabilisers`` puts them back on a loaded model.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import (
    STABILISERS_ATTRIBUTE,
    AttentionLayer,
    attention_layers,
    projection,
    query_norm_name,
    scale_heads,
    use_implementation,
)
from natattn.attention.types.base import IMPLEMENTATIONS, AttentionType
from natattn.attention.types.natural import NATURAL
from natattn.config.base import Positive, Settings
from natattn.errors import UserError

CONFIG_KEY = "natattn_stabilisers"


@dataclass(frozen=True)
class Stabilisers:
    """Changes to the energies of every attention layer.

    Attributes:
        query_key_norm: divide every query and key by its root mean square, without a learned gain, after any rotary
            embedding (which does not change it); with the usual scaling |E| ≤ √head_dim (Henry et al. 2020; Dehghani et
            al. 2023 use a LayerNorm).
        softcap: c > 0 of E ← c·tanh(E/c) (Gemma 2, 2024); no fused kernel of PyTorch computes it, so the pattern is
            held in memory, O(L²) per layer.
    """

    query_key_norm: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ValueError(f"softcap={self.softcap}: must be greater than 0 and finite")

    def __bool__(self) -> bool:
        return self.query_key_norm or self.softcap is not None

    def applied_to(self, inputs: AttentionInputs) -> AttentionInputs:
        """Return the inputs of the softmax with these changes."""
        if self.softcap is not None:
            inputs = replace(inputs, softcap=self.softcap)
        if self.query_key_norm:
            query, key = (nn.functional.rms_norm(each, each.shape[-1:]) for each in (inputs.query, inputs.key))
            inputs = replace(inputs, query=query, key=key)
        return inputs


def attach_stabilisers(model: Any, stabilisers: Stabilisers) -> None:
    """Put stabilisers on every attention layer of a transformers model, under this package's attention functions.

    Raises: ValueError for a model that already has a norm or soft cap of its own, or does not dispatch by name.
    """
    layers = attention_layers(model, cross_attention=True)
    for layer in layers:
        if stabilisers.query_key_norm and query_norm_name(layer.module) is not None:
            raise ValueError(f"query_key_norm: {layer.name} normalises its queries and keys already")
        own_cap = getattr(layer.module, "attn_logit_softcapping", None)
        if stabilisers.softcap is not None and own_cap is not None:
            raise ValueError(f"softcap: {layer.name} has a soft cap of its own, {own_cap}")
    if model.config._attn_implementation not in IMPLEMENTATIONS:
        use_implementation(model, NATURAL)
    for layer in layers:
        setattr(layer.module, STABILISERS_ATTRIBUTE, stabilisers)
    setattr(model.config, CONFIG_KEY, asdict(stabilisers))


def saved_stabilisers(config: Any) -> Stabilisers:
    """Return the stabilisers that a model was saved with, from its configuration.

    Raises: ValueError if the entry is not one that ``attach_stabilisers`` writes.
    """
    entry = getattr(config, CONFIG_KEY, None)
    if entry is None:
        return Stabilisers()
    keys = asdict(Stabilisers())
    softcap = entry.get("softcap") if isinstance(entry, Mapping) else None
    valid = (
        isinstance(entry, Mapping)
        and entry.keys() == keys.keys()
        and isinstance(entry["query_key_norm"], bool)
        and (softcap is None or isinstance(softcap, int | float))
    )
    if not valid:
        raise ValueError(f"{CONFIG_KEY}={entry!r}: valid are the keys {', '.join(keys)}")
    return Stabilisers(**entry)


def restore_stabilisers(model: Any) -> None:
    """Put the stabilisers that a loaded model was trained with, if any, back on it."""
    stabilisers = saved_stabilisers(model.config)
    if stabilisers:
        attach_stabilisers(model, stabilisers)


@torch.no_grad()
def clip_query_key_weights(model: nn.Module, maxima: Mapping[int, Tensor], threshold: float) -> dict[int, Tensor]:
    """Shrink W_Q and W_K of every head whose largest energy exceeds the threshold (QK-clip; Kimi K2 2025, 2.1).

    With γ = min(1, threshold / max E), rows of W_Q and W_K (and of their biases) are multiplied by √γ, so that every
    energy of the head is multiplied by γ. Grouped-query heads share a key; for them W_Q alone is multiplied, by γ.

    Args:
        maxima: by layer, [H]: the exact largest energy of each head over the step's batch.
        threshold: in nats at T = 1, as the energies; greater than 0.

    Returns: γ of every layer, [H]; 1 for heads that were not changed.

    Raises: ValueError for a layer whose projections are not known, or whose queries are normalised after them.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold={threshold}: must be greater than 0 and finite")
    layers = {layer.layer: layer for layer in attention_layers(model, cross_attention=True)}
    projections = {index: _query_and_key(layers[index]) for index in maxima}
    factors = {}
    for index, maximum in maxima.items():
        # The quotient is finite everywhere: a head without any pair has maximum −inf.
        factor = torch.where(maximum > threshold, threshold / maximum.clamp_min(threshold), 1.0)
        query, key = projections[index]
        is_grouped = query[0].shape[0] != key[0].shape[0]
        for tensor in query:
            scale_heads(tensor, factor if is_grouped else factor.sqrt())
        for tensor in [] if is_grouped else key:
            scale_heads(tensor, factor.sqrt())
        factors[index] = factor
    return factors


def _query_and_key(layer: AttentionLayer) -> tuple[list[Tensor], list[Tensor]]:
    """Return W_Q and W_K with their biases. Raises: ValueError if clipping them would not bound the energies."""
    module = layer.module
    if vars(module).get(STABILISERS_ATTRIBUTE, Stabilisers()).query_key_norm or query_norm_name(module) is not None:
        raise ValueError(f"{layer.name} normalises its queries: clipping their weights would change nothing")
    query, key = projection(module, "query"), projection(module, "key")
    if query is None or key is None:
        raise ValueError(f"{layer.name}: its query and key projections were not found")
    return query, key


class StabiliserSettings(Settings):
    """The stabilisers of both arms (``stabilisers=``).

    The defaults are those of ``stabilisers=none``, for the configurations of runs that are older than the group.
    """

    qk_norm: bool = False
    qk_clip: Positive | None = None
    softcap: Positive | None = None

    @property
    def in_forward(self) -> Stabilisers:
        """Return the stabilisers that change the function that attention computes."""
        return Stabilisers(self.qk_norm, self.softcap)

    def check(self, attention: AttentionType) -> None:
        """Refuse settings that would have no effect or could not be saved.

        Raises: UserError naming the keys.
        """
        active = [f"stabilisers.{key}={value}" for key, value in self if value]
        if not active:
            return
        if attention.own_architecture:
            raise UserError(f"{active[0]}: model={attention.kind} takes none; valid: stabilisers=none")
        if self.qk_clip is not None and len(active) > 1:
            raise UserError(f"{active[0]} {active[1]}: the energies are bounded already; give one of them")
        if attention.folds_into_queries and self.in_forward:
            raise UserError(
                f"{active[0]}: a temperature cannot be folded into the weights of such a model; "
                "valid: stabilisers.qk_clip, or another model"
            )

    def apply_to(self, model: Any) -> None:
        """Put the stabilisers on a model whose attention type has been applied.

        Raises: UserError for a model that has its own, or one whose weights cannot be clipped.
        """
        try:
            before, now = saved_stabilisers(model.config), self.in_forward
            if before and before != now:
                raise UserError(
                    f"stabilisers: the pretrained model was trained with others; valid: "
                    f"stabilisers.qk_norm={str(before.query_key_norm).lower()} "
                    f"stabilisers.softcap={'null' if before.softcap is None else before.softcap}"
                )
            if now:
                attach_stabilisers(model, now)
            if self.qk_clip is not None:
                for layer in attention_layers(model):
                    _query_and_key(layer)
        except ValueError as error:
            raise UserError(f"stabilisers: {error}") from None
