"""Rotary position embedding as a linear map, as the Fisher of a projection needs it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotations R_i, one per position: a rotated query is R_i q_i, a rotated key R_j k_j.

    Attributes:
        cos, sin: [B or 1, L, rotary_dim] as in transformers' models: the second half of the last dimension repeats the
            first. If rotary_dim < head_dim, the remaining dimensions are not rotated. A factor common to both (the
            attention scaling of some long-context variants) is part of R.
        interleaved: pairs of neighbouring dimensions rotate together (GPT-J), instead of dimension d with
            d + rotary_dim/2 (Llama and its relatives); cos and sin then repeat each entry twice in a row.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    def at(self, rows_R: Tensor) -> "Rotary":
        """Return the rotations of some positions."""
        return Rotary(self.cos[:, rows_R], self.sin[:, rows_R], self.interleaved)

    def rotate(self, vectors_BHLD: Tensor) -> Tensor:
        """Return R_i v_i for vectors [B, H, L, head_dim]."""
        return self._turn(vectors_BHLD, self.sin[:, None], self.cos[:, None])

    def transpose_rotate(self, vectors_BHLD: Tensor) -> Tensor:
        """Return R_iᵀ v_i for vectors [B, H, L, head_dim]: the inverse rotation where cos² + sin² = 1."""
        return self._turn(vectors_BHLD, -self.sin[:, None], self.cos[:, None])

    def conjugate(self, matrices_BHLDD: Tensor) -> Tensor:
        """Return R_iᵀ C_i R_i for symmetric C [B, H, L, head_dim, head_dim], in O(head_dim²) per position."""
        sin, cos = -self.sin[:, None, :, None], self.cos[:, None, :, None]
        half = self._turn(matrices_BHLDD, sin, cos)  # C R: the rows of C are turned by Rᵀ
        return self._turn(half.transpose(-1, -2), sin, cos)

    def sum_of_conjugates(self, matrices_BHLDD: Tensor) -> Tensor:
        """Return Σ R_iᵀ C_i R_i over sequences and positions, [H, head_dim, head_dim]."""
        if self.cos.shape[0] == 1:  # all sequences have the same positions: rotate their sum
            matrices_BHLDD = matrices_BHLDD.sum(0, keepdim=True)
        return self.conjugate(matrices_BHLDD).sum((0, 2))

    def _turn(self, vectors: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        turned, kept = vectors[..., : cos.shape[-1]], vectors[..., cos.shape[-1] :]
        turned = turned * cos.to(vectors.dtype) + self._quarter_turn(turned) * sin.to(vectors.dtype)
        return torch.cat([turned, kept], dim=-1)

    def _quarter_turn(self, vectors: Tensor) -> Tensor:
        """Map (u, v) → (−v, u) in the two dimensions of each pair."""
        if self.interleaved:
            return torch.stack([-vectors[..., 1::2], vectors[..., 0::2]], dim=-1).flatten(-2)
        first, second = vectors.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)


def matching_rotary(cos: Tensor, sin: Tensor, before_BHLD: Tensor, after_BHLD: Tensor) -> Rotary:
    """Return the rotations of a model, in the convention that rotates its queries from ``before`` to ``after``.

    The layout of cos and sin does not determine the convention: GLM makes them for halves and rotates neighbours. The
    directions of the queries are compared, not their lengths, which a norm before the rotation may change.

    Args:
        cos, sin: [B or 1, L, rotary_dim], in either layout.
        before_BHLD, after_BHLD: the first sequence's first queries, [1, H, some, head_dim].
    """
    half = cos.shape[-1] // 2
    in_halves = torch.equal(cos[..., :half], cos[..., half:])
    cos, sin = (part[..., :half] if in_halves else part[..., ::2] for part in (cos, sin))
    halves = Rotary(torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    neighbours = Rotary(cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1), interleaved=True)
    likeness = []
    count = before_BHLD.shape[2]
    for rotary in (halves, neighbours):
        turned = Rotary(rotary.cos[:1, :count], rotary.sin[:1, :count], rotary.interleaved).rotate(before_BHLD.float())
        likeness.append(torch.nn.functional.cosine_similarity(turned, after_BHLD.float(), dim=-1).mean())
    return neighbours if bool(likeness[1] > likeness[0]) else halves
