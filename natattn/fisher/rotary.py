"""Rotary position embedding as the linear map it is: what the Fisher of a projection sees of it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotations R_i, one per position: rotated query R_i q_i, rotated key R_j k_j.

    Attributes:
        cos, sin: [B or 1, L, rotary_dim] as transformers' models make them, the second half of the last dimension a
            repetition of the first. Where rotary_dim < head_dim, the dimensions after it are left as they are. A factor
            common to both (the attention scaling of some long-context variants) is part of R.
        interleaved: pairs of neighbouring dimensions turn together (GPT-J), instead of dimension d with
            d + rotary_dim/2 (Llama and its relatives); cos and sin then repeat each entry twice in a row.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    def at(self, rows_R: Tensor) -> "Rotary":
        """The rotations of some positions only."""
        return Rotary(self.cos[:, rows_R], self.sin[:, rows_R], self.interleaved)

    def rotate(self, vectors_BHLD: Tensor) -> Tensor:
        """R_i v_i for vectors [B, H, L, head_dim]."""
        return self._turn(vectors_BHLD, self.sin[:, None], self.cos[:, None])

    def transpose_rotate(self, vectors_BHLD: Tensor) -> Tensor:
        """R_iᵀ v_i for vectors [B, H, L, head_dim]: the inverse rotation where cos² + sin² = 1."""
        return self._turn(vectors_BHLD, -self.sin[:, None], self.cos[:, None])

    def conjugate(self, matrices_BHLDD: Tensor) -> Tensor:
        """R_iᵀ C_i R_i for symmetric C [B, H, L, head_dim, head_dim], in O(head_dim²) per position."""
        sin, cos = -self.sin[:, None, :, None], self.cos[:, None, :, None]
        half = self._turn(matrices_BHLDD, sin, cos)  # C R: the rows of C are turned by Rᵀ
        return self._turn(half.transpose(-1, -2), sin, cos)

    def sum_of_conjugates(self, matrices_BHLDD: Tensor) -> Tensor:
        """Σ R_iᵀ C_i R_i over sequences and positions, [H, head_dim, head_dim]."""
        if self.cos.shape[0] == 1:  # all sequences have the same positions: turn their sum
            matrices_BHLDD = matrices_BHLDD.sum(0, keepdim=True)
        return self.conjugate(matrices_BHLDD).sum((0, 2))

    def _turn(self, vectors: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        turned, kept = vectors[..., : cos.shape[-1]], vectors[..., cos.shape[-1] :]
        turned = turned * cos.to(vectors.dtype) + self._quarter_turn(turned) * sin.to(vectors.dtype)
        return torch.cat([turned, kept], dim=-1)

    def _quarter_turn(self, vectors: Tensor) -> Tensor:
        """(u, v) → (−v, u) for the two dimensions of each pair."""
        if self.interleaved:
            return torch.stack([-vectors[..., 1::2], vectors[..., 0::2]], dim=-1).flatten(-2)
        first, second = vectors.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)


def matching_rotary(cos: Tensor, sin: Tensor, before_BHLD: Tensor, after_BHLD: Tensor) -> Rotary:
    """The rotations of a model, in whichever of the two conventions turns its queries from ``before`` into ``after``.

    Some models make cos and sin for halves and turn neighbours (GLM), so their layout alone does not say. Directions
    are compared, not lengths: a norm between the projection and the rotation may have changed these.

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
    for found in (halves, neighbours):
        turned = Rotary(found.cos[:1, :count], found.sin[:1, :count], found.interleaved).rotate(before_BHLD.float())
        likeness.append(torch.nn.functional.cosine_similarity(turned, after_BHLD.float(), dim=-1).mean())
    return neighbours if bool(likeness[1] > likeness[0]) else halves
