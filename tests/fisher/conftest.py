"""One table of small attention layers in float64, with scores written here a second time, from the definitions."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fisher_oracles import with_ones

from natattn.attention.energy import AttentionInputs
from natattn.fisher.kronecker import Rotary

BATCH, HEADS, LENGTH, HEAD_DIM, WIDTH = 2, 4, 6, 4, 5


@dataclass
class Layer:
    """Weights, inputs and rules of one attention layer."""

    key_heads: int = HEADS
    bias: bool = False
    allowed: torch.Tensor | None = None  # None: the causal flag decides
    is_causal: bool = True
    rotary: str | None = None
    rotary_dim: int = HEAD_DIM
    options: dict[str, Any] = field(default_factory=dict)
    scaling: float = 0.7

    def __post_init__(self):
        generator = torch.Generator().manual_seed(1)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x = normal(BATCH, LENGTH, WIDTH)
        self.input = with_ones(x) if self.bias else x
        self.query_weight = normal(HEADS, HEAD_DIM, self.input.shape[-1])
        self.key_weight = normal(self.key_heads, HEAD_DIM, self.input.shape[-1])

    @property
    def angles(self):
        frequency = 0.9 ** torch.arange(self.rotary_dim // 2, dtype=torch.float64)
        return torch.arange(LENGTH, dtype=torch.float64)[:, None] * frequency

    @property
    def rotation(self):
        if self.rotary is None:
            return None
        angle = self.angles.repeat(1, 2) if self.rotary == "halves" else self.angles.repeat_interleave(2, dim=1)
        return Rotary(angle.cos()[None], angle.sin()[None], interleaved=self.rotary == "interleaved")

    def rotation_matrices(self):
        """R_i written out, [L, head_dim, head_dim]."""
        matrices = torch.eye(HEAD_DIM, dtype=torch.float64).repeat(LENGTH, 1, 1)
        if self.rotary is not None:
            for i in range(LENGTH):
                for pair, angle in enumerate(self.angles[i].tolist()):
                    half = self.rotary_dim // 2
                    u, v = (pair, pair + half) if self.rotary == "halves" else (2 * pair, 2 * pair + 1)
                    matrices[i, u, u] = matrices[i, v, v] = math.cos(angle)
                    matrices[i, v, u] = math.sin(angle)
                    matrices[i, u, v] = -math.sin(angle)
        return matrices

    def queries_and_keys(self, query_weight=None, key_weight=None):
        query_weight = self.query_weight if query_weight is None else query_weight
        key_weight = self.key_weight if key_weight is None else key_weight
        turn = self.rotation_matrices()
        query = torch.einsum("lde,hen,bln->bhld", turn, query_weight, self.input)
        key = torch.einsum("lde,hen,bln->bhld", turn, key_weight, self.input)
        return query, key

    def inputs(self, query_weight=None, key_weight=None):
        query, key = self.queries_and_keys(query_weight, key_weight)
        return AttentionInputs(
            query, key, self.scaling, attention_mask=self.allowed, is_causal=self.is_causal, **self.options
        )

    def scores(self, query_weight=None, key_weight=None):
        """z, [B, H, L, S]: what the softmax is taken of."""
        query, key = self.queries_and_keys(query_weight, key_weight)
        key = key.repeat_interleave(HEADS // self.key_heads, dim=1)
        energy = torch.einsum("bhid,bhjd->bhij", query, key) * self.scaling
        softcap = self.options.get("softcap")
        energy = energy if softcap is None else softcap * torch.tanh(energy / softcap)
        energy = energy + self.options.get("position_bias", 0.0)
        return energy / torch.as_tensor(self.options.get("temperature", 1.0)).view(-1, 1, 1)

    def allowed_pairs(self):
        if self.allowed is not None:
            return self.allowed.expand(BATCH, HEADS, LENGTH, LENGTH)
        everything = torch.ones(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.bool)
        return everything.tril() if self.is_causal else everything

    def patterns(self):
        """a_i by the definition, zeros for rows without keys."""
        weight = self.scores().exp() * self.allowed_pairs()
        total = weight.sum(-1, keepdim=True)
        return weight / total.masked_fill(total == 0, 1.0)


def _padded():
    """Causal, and the second sequence begins with three paddings: its first rows have no key."""
    allowed = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    allowed[1, :, :, :3] = False
    return allowed


def _window_per_head():
    """Every head sees another number of previous tokens, and the last head's first row none."""
    allowed = torch.ones(1, HEADS, LENGTH, LENGTH, dtype=torch.bool).tril()
    for head in range(HEADS):
        allowed[:, head] = allowed[:, head].triu(-1 - head)
    allowed[:, -1, 0] = False
    return allowed


def _position_bias():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, HEADS, LENGTH, LENGTH, generator=generator, dtype=torch.float64)


LAYERS = {
    "causal": {},
    "bidirectional": {"is_causal": False},
    "padded": {"allowed": _padded()},
    "mask per head": {"allowed": _window_per_head()},
    "grouped queries": {"key_heads": 2},
    "one key head, padded": {"key_heads": 1, "allowed": _padded()},
    "bias": {"bias": True},
    "rotary": {"rotary": "halves"},
    "rotary, interleaved": {"rotary": "interleaved"},
    "rotary in part, grouped, bias, padded": {
        "rotary": "halves",
        "rotary_dim": 2,
        "key_heads": 2,
        "bias": True,
        "allowed": _padded(),
    },
    "softcap, grouped": {"options": {"softcap": 1.5}, "key_heads": 2},
    "position bias": {"options": {"position_bias": _position_bias()}},
    "temperature per head": {"options": {"temperature": torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)}},
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    return Layer(**request.param)


@pytest.fixture
def make_layer():
    return Layer
