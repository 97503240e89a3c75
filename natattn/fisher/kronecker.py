"""Kronecker factors of attention's Fisher per head, from sampled query rows: note D, D1-Kron and D1-V.

The product of means stands in for the mean of products: with all means over query rows that have an allowed key,

    F(W_Q) / rows ≈ S_Q ⊗ A_Q,   A_Q = mean x_i x_iᵀ,                S_Q = mean (scaling/T)² Cov_{j∼a_i}(k_j)
    F(W_K) / rows ≈ S_K ⊗ A_K,   A_K = mean Cov_{j∼a_i}(x_j),        S_K = mean (scaling/T)² Σ_group q_i q_iᵀ
    W_V (model's own Fisher):    A_V = mean x̄_i x̄_iᵀ,                x̄_i = Σ_j a_ij x_j

The *traced* factors are what is left of D1-Q and D1-K when the output side is summed out, exactly: the best input
factor beside an output factor of 1. A row counts in them by how much its pattern can move:

    Ā_Q = mean tr S_i · x_i x_iᵀ,                S_i = (scaling/T)² Cov_{j∼a_i}(k_j)
    Ā_K = mean (scaling/T)² Σ_group |q_i|² Cov_{j∼a_i}(x_j)

All are in the row-major layout of ``natattn.fisher.decomposition``. Factors of W_K and W_V are per key head; with
grouped-query attention A_K and A_V are also means over the query heads of the group, and S_K and Ā_K sums over them.
With rotary embedding S_Q = R_iᵀ Cov(R_j k_j) R_i and Ā_Q stay exact, Ā_K takes the form without, and S_K takes
E_{j∼a_i}[u_ij u_ijᵀ] of the turned queries u_ij = R_jᵀ R_i q_i in place of q_i q_iᵀ: approximations, because
Cov_j(x_j ⊗ u_ij) does not factor.

No covariance is formed row by row where the rows can be summed first:
Σ_i Cov_{a_i}(x) = Xᵀ diag(Σ_i a_ij) X − Σ_i x̄_i x̄_iᵀ.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.patterns import row_patterns
from natattn.fisher.decomposition import softcap_slope

FactorName = Literal[
    "query_input", "query_output", "key_input", "key_output", "value_input", "query_input_traced", "key_input_traced"
]
FACTORS: tuple[FactorName, ...] = get_args(FactorName)


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


def kronecker_factors(
    inputs: AttentionInputs,
    input_BLN: Tensor,
    rows_R: Tensor,
    *,
    wanted: Collection[FactorName] = FACTORS,
    rotary: Rotary | None = None,
    key_input_BSN: Tensor | None = None,
    shared_key_input: bool = False,
    counted_rows: Tensor | None = None,
) -> dict[FactorName, Tensor]:
    """Return the factors of one attention layer, estimated from some query rows of every given sequence.

    Every row's term is weighted by L / R and divided by the counted number of rows that have an allowed key, so that
    each factor is an unbiased estimate of its mean over all rows when every row is sampled with probability R / L, as
    ``natattn.attention.energy.systematic_rows`` does; with all rows it is exact. The most expensive is
    "key_input", in O(B·(G·S + H·R)·N²); fewer sequences (``first_sequences``) and ``shared_key_input`` reduce its cost.

    Args:
        inputs: query and key after rotary embedding, as they enter the softmax.
        input_BLN: the layer's input x, which W_Q multiplies; with a last column of ones if biases are part of W.
        rows_R: int64 [R], distinct query rows.
        wanted: names of the factors; only these are computed.
        rotary: the rotations, of a sequence that attends to itself.
        key_input_BSN: what W_K and W_V multiply, if it is not ``input_BLN`` (cross-attention).
        shared_key_input: one A_K (and Ā_K) for all heads, [1, N, N]: the mean of theirs.
        counted_rows: number of query rows that have an allowed key, [1] or [H], if it is already known.

    Returns: by name, float32 (float64 for float64 queries), without gradients:
        query_input A_Q [1, N, N], or [H, N, N] if the mask differs between heads; query_output S_Q [H, D, D];
        key_input A_K [G, N, N]; key_output S_K [G, D, D]; value_input A_V [G, N, N]; query_input_traced [H, N, N];
        key_input_traced [G, N, N].
    Raises: KeyError for an unknown name.
    """
    key_input_BSN = input_BLN if key_input_BSN is None else key_input_BSN
    device = inputs.query.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        if counted_rows is None:
            _, counted_rows = inputs.count_pairs_and_rows()
        rows = _SampledRows(inputs, input_BLN, key_input_BSN, rows_R, counted_rows, rotary)
        compute: dict[FactorName, Callable[[], Tensor]] = {
            "query_input": rows.query_input,
            "query_output": rows.query_output,
            "key_input": rows.shared_key_input if shared_key_input else rows.key_input,
            "key_output": rows.key_output,
            "value_input": rows.value_input,
            "query_input_traced": rows.query_input_traced,
            "key_input_traced": partial(rows.key_input_traced, shared=shared_key_input),
        }
        return {name: compute[name]() for name in wanted}


def first_sequences(inputs: AttentionInputs, count: int) -> AttentionInputs:
    """Return the first ``count`` sequences of a batch; masks and biases that all sequences share are kept."""

    def first(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.shape[0] == 1 else tensor[:count]

    return replace(
        inputs,
        query=inputs.query[:count],
        key=inputs.key[:count],
        attention_mask=first(inputs.attention_mask),
        position_bias=first(inputs.position_bias),
    )


@dataclass(frozen=True, eq=False)
class _SampledRows:
    """The rows and weights that the factors share; fields as in ``kronecker_factors``.

    In shapes, Q is the number of query heads per key head: H = G·Q.
    """

    inputs: AttentionInputs
    query_input_all: Tensor
    key_input_all: Tensor
    rows: Tensor
    counted_rows: Tensor
    rotary: Rotary | None

    def query_input(self) -> Tensor:
        """Return A_Q."""
        input_BRN = self.query_input_all.index_select(1, self.rows).to(self.pattern.dtype)
        weight_BHR = (self.has_key * self.row_weight[:, None]).expand(input_BRN.shape[0], -1, -1)
        return torch.einsum("bhr,brn,brm->hnm", weight_BHR, input_BRN, input_BRN)

    def query_output(self) -> Tensor:
        """Return S_Q."""
        key_BGSD = self.inputs.key.to(self.pattern.dtype)
        if self.rotary is not None:
            return self._rotary_query_output(self.rotary, key_BGSD)
        mass_BGQS = self._grouped(self.square_weight.sum(2))
        second_GQDD = torch.einsum("bgqs,bgsd,bgse->gqde", mass_BGQS, key_BGSD, key_BGSD)
        mean_BGQRD = self._grouped(self.mean_weight) @ key_BGSD[:, :, None]
        covariance_GQDD = second_GQDD - torch.einsum("bgqrd,bgqre->gqde", mean_BGQRD, mean_BGQRD)
        return covariance_GQDD.flatten(0, 1) * self._scaled_row_weight

    def _rotary_query_output(self, rotary: Rotary, key_BGSD: Tensor) -> Tensor:
        """Return S_Q with rotations: each row rotates its own covariance, so rows cannot be summed first."""
        outer_BGSE = (key_BGSD[..., :, None] * key_BGSD[..., None, :]).flatten(-2)
        second = (self._grouped(self.square_weight) @ outer_BGSE[:, :, None]).flatten(1, 2)
        mean_BHRD = (self._grouped(self.mean_weight) @ key_BGSD[:, :, None]).flatten(1, 2)
        outer_BHRDD = mean_BHRD[..., :, None] * mean_BHRD[..., None, :]
        turned_HDD = rotary.at(self.rows).sum_of_conjugates(second.view_as(outer_BHRDD) - outer_BHRDD)
        return turned_HDD * self._scaled_row_weight

    def key_input(self) -> Tensor:
        """Return A_K."""
        input_BSN = self.key_input_all.to(self.pattern.dtype)
        mass_BGS = self._grouped(self._key_mass).sum(2)
        second_GNN = torch.einsum("bgs,bsn,bsm->gnm", mass_BGS, input_BSN, input_BSN)
        return (second_GNN - self._outer_by_key_head(self._mean_key_input)) / self.group

    def shared_key_input(self) -> Tensor:
        """Return the mean of A_K over the heads, with one product over the keys for all of them."""
        input_BSN = self.key_input_all.to(self.pattern.dtype)
        second_NN = torch.einsum("bs,bsn,bsm->nm", self._key_mass.sum(1), input_BSN, input_BSN)
        mean_MN = self._mean_key_input.flatten(0, 2)
        return (second_NN - mean_MN.mT @ mean_MN)[None] / self.inputs.query.shape[1]

    def query_input_traced(self) -> Tensor:
        """Return Ā_Q."""
        input_BRN = self.query_input_all.index_select(1, self.rows).to(self.pattern.dtype)
        key_BGSD = self.inputs.key.to(self.pattern.dtype)
        square_BGS1 = key_BGSD.square().sum(-1, keepdim=True)
        second_BHR = (self._grouped(self.square_weight) @ square_BGS1[:, :, None]).flatten(1, 2)[..., 0]
        mean_BHRD = (self._grouped(self.mean_weight) @ key_BGSD[:, :, None]).flatten(1, 2)
        trace_BHR = (second_BHR - mean_BHRD.square().sum(-1)).clamp_min(0.0)
        return torch.einsum("bhr,brn,brm->hnm", trace_BHR, input_BRN, input_BRN) * self._scaled_row_weight

    def key_input_traced(self, *, shared: bool) -> Tensor:
        """Return Ā_K."""
        query_BHRD = self.inputs.query.index_select(2, self.rows).to(self.pattern.dtype)
        weight_BHR1 = query_BHRD.square().sum(-1, keepdim=True) * self._scaled_row_weight
        input_BSN = self.key_input_all.to(self.pattern.dtype)
        mass_BGS = self._grouped((self.square_weight * weight_BHR1).sum(2)).sum(2)
        mean_BHRN = self._average_input(self.mean_weight) * weight_BHR1.sqrt()
        if shared:
            second_NN = torch.einsum("bs,bsn,bsm->nm", mass_BGS.sum(1), input_BSN, input_BSN)
            mean_MN = mean_BHRN.flatten(0, 2)
            return (second_NN - mean_MN.mT @ mean_MN)[None] / mass_BGS.shape[1]
        second_GNN = torch.einsum("bgs,bsn,bsm->gnm", mass_BGS, input_BSN, input_BSN)
        return second_GNN - self._outer_by_key_head(mean_BHRN)

    def key_output(self) -> Tensor:
        """Return S_K."""
        query_BHRD = self.inputs.query.index_select(2, self.rows).to(self.pattern.dtype)
        query_BHRD = query_BHRD * self.has_key[..., None] * self._scaled_row_weight.sqrt()
        if self.rotary is None:
            return self._outer_by_key_head(query_BHRD)
        # Σ_j R_jᵀ (Σ_i a_ij R_i q_i q_iᵀ R_iᵀ) R_j: all queries that read a key are summed before the rotation.
        query_BGMD = self._grouped(query_BHRD).flatten(2, 3)
        outer_BGMDD = query_BGMD[..., :, None] * query_BGMD[..., None, :]
        read_BGSE = self._grouped(self.pattern).flatten(2, 3).mT @ outer_BGMDD.flatten(-2)
        return self.rotary.sum_of_conjugates(read_BGSE.reshape(*read_BGSE.shape[:-1], *outer_BGMDD.shape[-2:]))

    def value_input(self) -> Tensor:
        """Return A_V."""
        return self._outer_by_key_head(self._averaged_input * self._root_weight) / self.group

    @property
    def group(self) -> int:
        """Query heads per key head, Q."""
        return self.inputs.query.shape[1] // self.inputs.key.shape[1]

    @cached_property
    def pattern(self) -> Tensor:
        """a_ij, [B, H, R, S]."""
        return row_patterns(self.inputs, self.rows)

    @cached_property
    def has_key(self) -> Tensor:
        """1 for rows that have an allowed key, 0 for others, [B or 1, H or 1, R]."""
        return self.inputs.allowed(self.rows).any(-1).to(self.pattern.dtype)

    @cached_property
    def row_weight(self) -> Tensor:
        """Weight of one sampled row in a mean over all rows that have a key, [1] or [H]; 0 if there are none."""
        inclusion = self.rows.shape[0] / self.inputs.length
        return torch.where(self.counted_rows > 0, 1 / (inclusion * self.counted_rows), 0.0)

    @property
    def _root_weight(self) -> Tensor:
        return self.row_weight.sqrt()[:, None, None]

    @property
    def _scaled_row_weight(self) -> Tensor:
        """Row weight times (scaling/T)², to multiply [H, ·, ·]."""
        return self.row_weight[:, None, None] * (self.inputs.scaling / self.inputs.broadcast_temperature) ** 2

    @cached_property
    def _slope(self) -> Tensor | None:
        return softcap_slope(self.inputs, self.rows)

    @cached_property
    def mean_weight(self) -> Tensor:
        """a_ij s_ij, with s the slope of the soft-cap: weights of the mean of s_ij v_j."""
        return self.pattern if self._slope is None else self.pattern * self._slope

    @cached_property
    def square_weight(self) -> Tensor:
        """a_ij s_ij²: weights of the second moment of s_ij v_j."""
        return self.pattern if self._slope is None else self.mean_weight * self._slope

    @property
    def _key_mass(self) -> Tensor:
        """Weight of each key's x_j x_jᵀ in the mean over rows, [B, H, S]."""
        return self.square_weight.sum(2) * self.row_weight[:, None]

    @property
    def _mean_key_input(self) -> Tensor:
        """Means of s_ij x_j times the root of the row's weight, [B, H, R, N]."""
        mean = self._averaged_input if self._slope is None else self._average_input(self.mean_weight)
        return mean * self._root_weight

    @cached_property
    def _averaged_input(self) -> Tensor:
        """x̄_i = Σ_j a_ij x_j, [B, H, R, N]."""
        return self._average_input(self.pattern)

    def _average_input(self, weight_BHRS: Tensor) -> Tensor:
        batch, heads, rows, keys = weight_BHRS.shape
        flat = weight_BHRS.reshape(batch, heads * rows, keys) @ self.key_input_all.to(weight_BHRS.dtype)
        return flat.view(batch, heads, rows, -1)

    def _outer_by_key_head(self, vectors_BHRV: Tensor) -> Tensor:
        """Return Σ v vᵀ over batch, rows and the query heads of each key head, [G, V, V]."""
        vectors_GMV = self._grouped(vectors_BHRV).movedim(1, 0).flatten(1, 3)
        return vectors_GMV.mT @ vectors_GMV

    def _grouped(self, tensor: Tensor) -> Tensor:
        """Reshape [B, H, ...] → [B, G, Q, ...]."""
        return tensor.reshape(tensor.shape[0], -1, self.group, *tensor.shape[2:])


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
