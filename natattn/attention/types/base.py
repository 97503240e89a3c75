"""The base of the attention types, and what their attention functions share.

A file of this package holds one attention type: its settings (``model.attention`` of a configuration), its attention
function, which transformers calls by name, and ``apply_to``, which puts both on a model. Parameters, initialisation,
cache and generation stay those of the host architecture.

An attention function has the arguments and the result of transformers' own: query [batch, heads, queries, head_dim],
key and value [batch, key heads, keys, head_dim], and a mask that is None or broadcastable to
[batch, heads, queries, keys], boolean or additive. Without a mask, ``is_causal`` or else the module's own flag decides.
The result is the output [batch, queries, heads, head_dim], and None in place of the weights. The output comes from the
fused kernel behind "sdpa" wherever that kernel computes it.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import PARAMETERS_ATTRIBUTE, SITE_ATTRIBUTE, STABILISERS_ATTRIBUTE
from natattn.config.base import Settings

Output = tuple[Tensor, None]
AttentionFunction = Callable[..., Output]
Kind = TypeVar("Kind")

IMPLEMENTATIONS: set[str] = set()  # names under which the attention functions of this package are registered


def attention_function(name: str) -> Callable[[AttentionFunction], AttentionFunction]:
    """Register the decorated function with transformers under ``name``, as ``attn_implementation``.

    The mask function of "sdpa" is registered with it: without one, transformers would drop the padding mask.
    """

    def register(function: AttentionFunction) -> AttentionFunction:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
        IMPLEMENTATIONS.add(name)
        return function

    return register


class EnergySource(Protocol):
    """The answers of an ``AttentionProbe`` that an optimizer's energy factor needs."""

    @property
    def layers(self) -> list[int]:
        """Indices of the observed layers."""

    @property
    def recorded_layers(self) -> list[int]:
        """Indices of the layers that the last recorded step has seen."""

    def mean_absolute_energy(self, layer: int) -> Tensor:
        """Return the mean of |E| over the layer's heads and allowed pairs, a float32 scalar."""


class AttentionType(Settings):
    """The settings of an attention type, and what it does to a model.

    Attributes:
        observable: a probe may observe the model's attention during training.
        own_architecture: the model is made of blocks of its own, by ``build_model``: no stabilisers, no Kronecker
            factors, no stacking, no weights in common with the reference arm.
        may_look_ahead: the checks before training report that a token sees later ones, instead of refusing it.
        folds_into_queries: saving a model folds a factor into W_Q, which a norm or soft-cap after it rules out.
    """

    observable: ClassVar[bool] = True
    own_architecture: ClassVar[bool] = False
    may_look_ahead: ClassVar[bool] = False
    folds_into_queries: ClassVar[bool] = False

    kind: str

    @property
    def tokens_to_label(self) -> int:
        """Distance from an input token to its label; more than one only to repeat a published mistake."""
        return 1

    @property
    def depends_on_length(self) -> bool:
        """Return whether the function at a step depends on the number of steps of the run."""
        return False

    def apply_to(self, model: Any) -> None:
        """Put this type on a transformers model that has plain softmax attention."""

    def build_model(
        self, sizes: dict[str, Any], *, vocab_size: int, end_token_id: int, dropout: float, seed: int
    ) -> nn.Module:
        """Build a model with random weights, in float32 on the CPU, if ``own_architecture``."""
        raise NotImplementedError(f"{type(self).__name__} has no architecture of its own")

    def energy_source(self, model: nn.Module) -> EnergySource:
        """Return what an optimizer reads the energies from, if ``own_architecture``; otherwise it reads a probe."""
        raise NotImplementedError(f"{type(self).__name__} has no architecture of its own")


def observed_inputs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    options: dict[str, Any],
    temperature: float | Tensor = 1.0,
) -> AttentionInputs:
    """Return the inputs of a layer's softmax, after showing them to the probe's site on the layer.

    Args:
        options: the remaining keyword arguments of the attention function.

    Raises: NotImplementedError for learned sinks, which would silently be ignored.
    """
    if options.get("s_aux") is not None:
        raise NotImplementedError(f"{type(module).__name__} has learned attention sinks (s_aux): use eager attention")
    scaling, is_causal = options.get("scaling"), options.get("is_causal")
    inputs = AttentionInputs(
        query,
        key,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        attention_mask=attention_mask,
        is_causal=is_causal if is_causal is not None else bool(getattr(module, "is_causal", True)),
        softcap=options.get("softcap"),
        position_bias=options.get("position_bias"),
        temperature=temperature,
    )
    stabilisers = getattr(module, STABILISERS_ATTRIBUTE, None)
    if stabilisers:
        inputs = stabilisers.applied_to(inputs)
    site = getattr(module, SITE_ATTRIBUTE, None)
    if site is not None:
        site.observe(inputs)
    return inputs


def fused_attention(module: nn.Module, inputs: AttentionInputs, value: Tensor, options: dict[str, Any]) -> Output:
    """Compute softmax(E) V with PyTorch's fused kernel, which knows neither a soft-cap nor a temperature."""
    changed = {"scaling": inputs.scaling, "is_causal": inputs.is_causal, "position_bias": inputs.position_bias}
    mask = inputs.attention_mask
    output, _ = sdpa_attention_forward(module, inputs.query, inputs.key, value, mask, **{**options, **changed})
    return output, None


def as_output(output_BHLD: Tensor) -> Output:
    """Return an output in the layout that transformers expects, [batch, queries, heads, head_dim]."""
    return output_BHLD.transpose(1, 2).contiguous(), None


def parameters_of(module: nn.Module, kind: type[Kind]) -> Kind:
    """Return the parameters that ``natattn.attention.layers.attach`` set on a layer.

    Raises: ValueError if there are none of this kind.
    """
    parameters = getattr(module, PARAMETERS_ATTRIBUTE, None)
    if not isinstance(parameters, kind):
        raise ValueError(
            f"{getattr(kind, 'implementation', '')} attention without its parameters: "
            f"natattn.attention.layers.attach(model, {kind.__name__}(...)) sets them"
        )
    return parameters
