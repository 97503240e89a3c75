"""Where a transformers model's attention layers are, and what this package hangs on them.

Plain attributes, outside parameters, buffers and state_dict: the site of a probe, the parameters of the attention
function, and its stabilisers. A transformers ``set_attn_implementation`` chooses the function itself.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

SITE_ATTRIBUTE = "_attention_site"
PARAMETERS_ATTRIBUTE = "_attention_parameters"
STABILISERS_ATTRIBUTE = "_attention_stabilisers"

NATURAL = "natural"
NATURAL_GRADIENT = "natural_gradient"
TEMPERED = "tempered"
IMPLEMENTATIONS = (NATURAL, NATURAL_GRADIENT, TEMPERED)

# GPT2Attention says so itself; Bart calls it encoder_attn, T5 EncDecAttention, Bert BertCrossAttention.
_CROSS_ATTENTION = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a model: ``layer`` is its index, unique among the layers it was found with."""

    layer: int
    name: str
    module: nn.Module
    is_cross_attention: bool


@dataclass(frozen=True)
class NaturalGradient:
    """Parameters of ``natural_gradient`` attention: the damping λ > 0 of the softmax Fisher."""

    implementation: ClassVar[str] = NATURAL_GRADIENT
    damping: float

    def __post_init__(self) -> None:
        if not 0 < self.damping < math.inf:
            raise ValueError(f"damping={self.damping}: must be greater than 0 and finite")


@dataclass(frozen=True, eq=False)
class Tempered:
    """Parameters of ``tempered`` attention: T > 0 of softmax(E/T).

    Attributes:
        temperature: a number costs nothing, it is folded into the scaling of the kernel; a tensor [H] holds a
            temperature for each head, a tensor [1] one that a schedule changes in place (``set_temperature``), both at
            the cost of one product with the queries.
    """

    implementation: ClassVar[str] = TEMPERED
    temperature: float | Tensor

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.temperature)
        if not bool((values.gt(0) & values.isfinite()).all()):
            raise ValueError(f"temperature={self.temperature}: must be greater than 0 and finite")


def attention_layers(model: nn.Module, *, cross_attention: bool = False) -> list[AttentionLayer]:
    """The self-attention layers of a model, and with ``cross_attention`` those that read another sequence, in order.

    A layer is a module with an ``is_causal`` and a ``config``, which is what transformers' attention functions are
    called with. Its index is its ``layer_idx`` where all have one and no two the same (not so in an encoder–decoder),
    else its place among the self-attention layers; cross-attention layers are numbered after them.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "is_causal", None), bool) and hasattr(module, "config")
    ]
    own = [name for name, module in found if not _is_cross_attention(name, module)]
    indices = _layer_indices([module for name, module in found if name in own])
    numbers = dict(zip(own, indices, strict=True))
    if cross_attention:
        others = [name for name, _ in found if name not in numbers]
        numbers |= {name: max(indices, default=-1) + 1 + place for place, name in enumerate(others)}
    return [
        AttentionLayer(numbers[name], name, module, is_cross_attention=name not in own)
        for name, module in found
        if name in numbers
    ]


def _layer_indices(modules: list[nn.Module]) -> list[int]:
    own = [index for module in modules if isinstance(index := getattr(module, "layer_idx", None), int)]
    return own if len(set(own)) == len(modules) else list(range(len(modules)))


def attention_modules(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """(layer index, module) of every self-attention layer."""
    return [(found.layer, found.module) for found in attention_layers(model)]


def use_implementation(model: Any, implementation: str) -> None:
    """Run a transformers model's attention layers under the attention function of this name.

    Raises: ValueError when the model has no attention layers, or some that do not dispatch attention by name.
    """
    layers = attention_layers(model, cross_attention=True)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention layers that dispatch by name")
    model.set_attn_implementation(implementation)
    for found in layers:
        # transformers only warns where it cannot set it.
        if found.module.config._attn_implementation != implementation:  # type: ignore[union-attr]
            raise ValueError(f"{type(model).__name__} does not dispatch attention by name: {found.name} keeps its own")


def _is_cross_attention(name: str, module: nn.Module) -> bool:
    if getattr(module, "is_cross_attention", False):
        return True
    own_name = name.rsplit(".", 1)[-1]
    parent = name.rsplit(".", 2)[-2] if name.count(".") >= 1 else ""
    return any(_CROSS_ATTENTION.search(text) for text in (own_name, parent, type(module).__name__))
