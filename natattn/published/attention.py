"""The paper's classes: attention with separate projections whose energies can be read, and a GPT-2 block around it.

The block stands in for transformers' ``GPT2Block`` in ``GPT2Model.h``. As published it has PyTorch's own initialisation
and no dropout: ``attn_pdrop`` and ``resid_pdrop`` of the configuration have no effect in it. Unlike the published code
it is causal unless ``causal=False``, and no L×L matrix is kept: energies are computed from queries and keys when asked.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache, GPT2Config
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import PARAMETERS_ATTRIBUTE
from natattn.attention.patterns import row_patterns
from natattn.attention.quantities import QUANTITIES
from natattn.attention.statistics import EnergyStatistics, streaming_statistics
from natattn.attention.types.base import IMPLEMENTATIONS
from natattn.attention.types.natural import natural_attention
from natattn.attention.types.tempered import Tempered
from natattn.published.cache import place_in_cache
from natattn.published.masks import head_factors, whole_mask


class NaturalAttention(nn.Module):
    """Multi-head softmax attention with separate projections, whose energies can be read after every forward.

    Attention functions of this package that the model is set to ("natural", "natural_gradient", "tempered") are used;
    any other name in ``config._attn_implementation`` means "natural", whose output is that of PyTorch's fused kernel.
    With "eager" the weights are always returned, as by GPT-2. A probe observes this module like GPT-2's own attention.

    Args:
        config: of the model; its ``n_embd``, ``n_head`` and ``scale_attn_*`` are read.
        layer_idx: place of this layer in a key-value cache; without it the layer takes the first free place.
        causal: False lets every token see later ones, as the published code did: such a language model is LEAKY.

    Raises: ValueError for a configuration that this layer cannot have.
    """

    def __init__(self, config: GPT2Config, layer_idx: int | None = None, causal: bool = True) -> None:
        super().__init__()
        width, heads = config.n_embd, config.n_head
        if heads < 1 or width % heads:
            raise ValueError(f"n_head={heads}: does not divide n_embd={width}")
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = causal
        self.num_heads = heads
        self.head_dim = width // heads
        self.scaling = _scaling(config, self.head_dim, layer_idx)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self._last: AttentionInputs | None = None

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: [batch, queries, n_embd].
            past_key_values: keys and values of the tokens before these; extended by these.
            attention_mask: [batch, keys], nonzero for real tokens; or broadcastable to [batch, heads, queries, keys],
                boolean (True is allowed) or additive. A causal layer stays causal whatever the mask allows.
            head_mask: factor on each head's weights: [heads], or [layers, heads] of which this layer takes its row, or
                [batch or 1, heads, 1, 1].
            output_attentions: also compute the weights, O(queries · keys) memory.
            use_cache: of no effect here: a cache that is given is used.
            kwargs: handed to the attention function.

        Returns: output [batch, queries, n_embd], and weights [batch, heads, queries, keys] or None.

        Raises: ValueError for shapes that do not fit, and for a bidirectional layer that is to go on from a cache.
        """
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != self.config.n_embd:
            raise ValueError(
                f"hidden_states: shape {list(hidden_states.shape)}, needs [batch, queries, {self.config.n_embd}]"
            )
        query, key, value = (self._split(proj(hidden_states)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        head_factor = None if head_mask is None else head_factors(head_mask, query, self.config.n_layer, self.layer_idx)
        first_position = 0
        if past_key_values is not None:
            key, value, first_position = self._extended(past_key_values, key, value)
        mask = whole_mask(attention_mask, query, key, is_causal=self.is_causal, first_position=first_position)
        inputs = AttentionInputs(query, key, self.scaling, mask, self.is_causal, temperature=self._temperature())
        self._last = _detached(inputs)
        output, _ = self._attention_function()(self, query, key, value, mask, scaling=self.scaling, **kwargs)
        if head_factor is not None:
            output = output * head_factor.transpose(1, 2)
        wanted = output_attentions or self.config._attn_implementation == "eager"
        weights = _weights(inputs, head_factor).to(value.dtype) if wanted else None
        return self.out_proj(output.flatten(2)), weights

    @property
    def observed(self) -> AttentionInputs:
        """Queries, keys, scaling and mask of the last forward, detached.

        Raises: RuntimeError before the first forward.
        """
        if self._last is None:
            raise RuntimeError("no energies yet: run a forward pass first")
        return self._last

    @property
    def energies(self) -> Tensor:
        """E of the last forward, [batch, heads, queries, keys], float32 or float64, detached.

        The raw scores that enter the softmax, before masking: finite on forbidden pairs too, where they mean nothing.
        ``energy_statistics`` leaves those out.

        Raises: RuntimeError before the first forward.
        """
        inputs = self.observed
        # Autocast would round the products to half precision.
        with torch.autocast(inputs.query.device.type, enabled=False):
            return inputs.energies(torch.arange(inputs.length, device=inputs.query.device))

    def energy_statistics(self, quantities: Collection[str] = tuple(QUANTITIES)) -> EnergyStatistics:
        """Statistics of the last forward's energies over its allowed pairs only, per head; padding counts nowhere.

        Args:
            quantities: names from ``natattn.attention.quantities.QUANTITIES``.

        Raises: RuntimeError before the first forward.
        """
        with torch.no_grad(), torch.autocast(self.q_proj.weight.device.type, enabled=False):
            return streaming_statistics(self.observed.without_padded_rows(), quantities)

    def _split(self, states: Tensor) -> Tensor:
        """[batch, tokens, n_embd] → [batch, heads, tokens, head_dim]."""
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _extended(self, cache: Cache, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values behind those of the cache, and the number that it held."""
        place = self.layer_idx if self.layer_idx is not None else place_in_cache(cache, self)
        first_position = int(cache.get_seq_length(place))
        if first_position and not self.is_causal:
            raise ValueError(
                "a layer with causal=False cannot go on from a cache, whose keys have not seen the new tokens; "
                "call the model with use_cache=False"
            )
        key, value = cache.update(key, value, place)
        return key, value, first_position

    def _attention_function(self) -> Any:
        implementation = self.config._attn_implementation
        if implementation in IMPLEMENTATIONS:
            return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, natural_attention)
        return natural_attention

    def _temperature(self) -> float | Tensor:
        parameters = getattr(self, PARAMETERS_ATTRIBUTE, None)
        if self.config._attn_implementation == Tempered.implementation and isinstance(parameters, Tempered):
            return parameters.temperature
        return 1.0


class FeedForward(nn.Module):
    """Two linear layers with the configuration's activation between them; inner width ``n_inner`` or 4 · ``n_embd``."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = nn.Linear(config.n_embd, inner)
        self.c_proj = nn.Linear(inner, config.n_embd)
        self.act = ACT2FN[config.activation_function]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., n_embd] → [..., n_embd]."""
        projected: Tensor = self.c_proj(self.act(self.c_fc(hidden_states)))
        return projected


class GPT2NaturalAttentionBlock(GPT2Block):  # type: ignore[no-untyped-call]
    """A GPT-2 block, norm → attention → norm → feed-forward with residual connections, around ``NaturalAttention``.

    To transformers it is a ``GPT2Block``, and takes the place of one:
    ``model.transformer.h[i] = GPT2NaturalAttentionBlock(config, layer_idx=i)``.

    Args:
        config: of the model.
        layer_idx, causal: see ``NaturalAttention``.

    Raises: ValueError for a configuration with cross-attention, which these blocks do not have, or impossible sizes.
    """

    attn: NaturalAttention  # type: ignore[assignment]
    mlp: FeedForward  # type: ignore[assignment]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the block, weakly; copies and unpickled blocks come by here too."""
        block: Self = super().__new__(cls)
        _BLOCKS.add(block)
        return block

    def __init__(self, config: GPT2Config, layer_idx: int | None = None, causal: bool = True) -> None:
        super(GPT2Block, self).__init__()  # GPT2Block's own would make the fused attention
        if config.add_cross_attention:
            raise ValueError("add_cross_attention=True: GPT2NaturalAttentionBlock has self-attention only")
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = NaturalAttention(config, layer_idx, causal)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool = False,
        *,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[batch, queries, n_embd] → the same; with ``output_attentions`` a pair of that and the weights.

        Arguments are those of ``GPT2Block`` and, by keyword, ``NaturalAttention``'s ``head_mask``.

        Raises: ValueError for encoder states, and what ``NaturalAttention`` raises.
        """
        if encoder_hidden_states is not None or encoder_attention_mask is not None:
            raise ValueError("encoder_hidden_states: GPT2NaturalAttentionBlock has no cross-attention")
        attended, weights = self.attn(
            self.ln_1(hidden_states),
            past_key_values,
            attention_mask,
            output_attentions=output_attentions,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.ln_2(hidden_states))
        return (hidden_states, weights) if output_attentions else hidden_states


_BLOCKS: WeakSet[GPT2NaturalAttentionBlock] = WeakSet()


def blocks_of(parameters: Iterable[nn.Parameter]) -> list[GPT2NaturalAttentionBlock]:
    """The living blocks that hold any of these parameters, in the order of the parameters."""
    owners = {id(parameter): block for block in list(_BLOCKS) for parameter in block.parameters()}
    found = {id(block): block for parameter in parameters if (block := owners.get(id(parameter))) is not None}
    return list(found.values())


def _scaling(config: GPT2Config, head_dim: int, layer_idx: int | None) -> float:
    """Factor on q·k, as GPT-2 reads its configuration."""
    scaling = float(head_dim**-0.5) if config.scale_attn_weights else 1.0
    if not config.scale_attn_by_inverse_layer_idx:
        return scaling
    if layer_idx is None:
        raise ValueError("scale_attn_by_inverse_layer_idx=True: needs layer_idx")
    return scaling / (layer_idx + 1)


def _weights(inputs: AttentionInputs, head_factor: Tensor | None) -> Tensor:
    """The pattern softmax(E/T), times the head mask, [batch, heads, queries, keys]."""
    with torch.autocast(inputs.query.device.type, enabled=False):  # as for the energies
        weights = row_patterns(inputs)
    return weights if head_factor is None else weights * head_factor


def _detached(inputs: AttentionInputs) -> AttentionInputs:
    mask = inputs.attention_mask
    return replace(
        inputs,
        query=inputs.query.detach(),
        key=inputs.key.detach(),
        attention_mask=None if mask is None else mask.detach(),
    )
