"""The dense attention-Fisher, for small cases: note D, D1, D1-Q and D1-K.

The attention-Fisher of a parameter θ of the scores is the Fisher information of the patterns a_i = softmax(z_i), taken
as distributions over keys. Sums run over the query rows of all sequences; divide by their number for the mean.

Layout: a projection W of one head is [head_dim, n_embd] as in ``torch.nn.Linear``, and vec(W) = W.flatten() is
row-major. The gradient of score z_ij is scaling · k_j x_iᵀ for W_Q, whose vec is k_j ⊗ x_i: the head_dim factor comes
*first* in every Kronecker product here (the note writes the column-major order, with the input factor first). A bias is
one more column of W: extend the input with ``with_ones``. For float64 inputs everything is computed in float64.

Shape suffixes as in ``natattn.attention.energy``, and N for n_embd, P for parameters.
"""

from typing import Literal

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs, row_energies
from natattn.attention.patterns import row_patterns
from natattn.fisher.rotary import Rotary

KeyForm = Literal["averaged", "plain"]


def with_ones(input_BLN: Tensor) -> Tensor:
    """[x, 1]: the input of a projection whose bias is its last column, [B, L, N+1]."""
    return torch.nn.functional.pad(input_BLN, (0, 1), value=1.0)


def softcap_slope(inputs: AttentionInputs, rows_R: Tensor) -> Tensor | None:
    """Derivative of the soft-cap at each score, 1 − tanh²(E/c), [B, H, R, S]; None where there is no soft-cap."""
    if inputs.softcap is None:
        return None
    uncapped = row_energies(inputs.query, inputs.key, rows_R, inputs.scaling)
    return 1 - torch.tanh(uncapped / inputs.softcap).square()


def score_fisher(pattern: Tensor) -> Tensor:
    """The score-space blocks M_i = diag(a_i) − a_i a_iᵀ = ∇² log Z_i: [..., S] → [..., S, S]."""
    return torch.diag_embed(pattern) - pattern[..., :, None] * pattern[..., None, :]


def attention_fisher(jacobian: Tensor, pattern: Tensor) -> Tensor:
    """D1 for any parameter: Σ_i J_iᵀ (diag(a_i) − a_i a_iᵀ) J_i, without the blocks themselves.

    Args:
        jacobian: [..., S, P], derivatives of each row's scores z_i = E_i / T.
        pattern: [..., S], 0 on forbidden pairs.

    Returns: [P, P].
    """
    jacobian = jacobian.reshape(-1, *jacobian.shape[-2:])
    pattern = pattern.reshape(-1, pattern.shape[-1])
    # Forbidden pairs may carry any finite number: they have weight 0.
    mean = torch.einsum("rs,rsp->rp", pattern, jacobian)
    deviation = (jacobian - mean[:, None]) * pattern[..., None].sqrt()
    flat = deviation.flatten(0, 1)
    return flat.mT @ flat


def query_fisher(inputs: AttentionInputs, input_BLN: Tensor, rotary: Rotary | None = None) -> Tensor:
    """D1-Q: F(W_Q) per query head = (scaling/T)² Σ_i Cov_{j∼a_i}(k_j) ⊗ x_i x_iᵀ.

    With rotary embedding, k_j is the rotated key and the covariance becomes R_iᵀ Cov(R_j k_j) R_i: still exact. A
    soft-cap puts its slope on every key, Cov_{j∼a_i}(s_ij k_j).

    Args:
        inputs: query and key after rotary embedding, as they enter the softmax.
        input_BLN: what W_Q multiplies.

    Returns: [H, head_dim · N, head_dim · N].
    """
    covariance = _key_covariances(inputs)
    if rotary is not None:
        covariance = rotary.conjugate(covariance)
    input_BLN = input_BLN.to(covariance.dtype)
    fisher = torch.einsum("bhide,bin,bim->hdnem", covariance, input_BLN, input_BLN)
    return _as_matrices(fisher)


def key_fisher(inputs: AttentionInputs, input_BSN: Tensor, rotary: Rotary | None = None) -> Tensor:
    """D1-K: F(W_K) per key head = (scaling/T)² Σ_i q_i q_iᵀ ⊗ Cov_{j∼a_i}(x_j), over the query heads of its group too.

    With rotary embedding the vectors are x_j ⊗ R_jᵀ R_i q_i, which vary with j in both factors: their covariance does
    not factor and is computed densely, in O(B·H·L·S·head_dim·N) memory.

    Args:
        inputs: query and key after rotary embedding, as they enter the softmax.
        input_BSN: what W_K multiplies.

    Returns: [G, head_dim · N, head_dim · N].
    """
    if rotary is None:
        return factored_key_fisher(inputs, input_BSN)
    pattern = row_patterns(inputs)
    turned = _turned_back_queries(inputs, rotary, pattern)
    jacobian = torch.einsum(
        "bhijd,bjn,bhij->bhijdn", turned, input_BSN.to(pattern.dtype), _score_slopes(inputs, pattern)
    ).flatten(-2)
    return torch.vmap(attention_fisher)(_by_key_head(inputs, jacobian), _by_key_head(inputs, pattern))


def factored_key_fisher(
    inputs: AttentionInputs, input_BSN: Tensor, rotary: Rotary | None = None, form: KeyForm = "averaged"
) -> Tensor:
    """D1-K with a product in every row, Σ_i (second moment of the queries) ⊗ Cov_{j∼a_i}(x_j): [G, D · N, D · N].

    Exact without rotary embedding, where the second moment is q_i q_iᵀ. With it, it is E_{j∼a_i}[u_ij u_ijᵀ] of the
    turned queries u_ij = R_jᵀ R_i q_i ("averaged", which the Kronecker factors use), or their value at j = i, the query
    before rotation ("plain"). Both are approximations, measured by ``natattn.fisher.approximation.rotary_key_error``:
    relative errors of 0.2 to 0.5 and of 0.7 to 0.8 in random layers with head_dim 8, 32 positions and base 10,000.
    """
    pattern = row_patterns(inputs)
    slope = softcap_slope(inputs, torch.arange(inputs.length, device=pattern.device))
    covariance = _covariance(pattern, slope, input_BSN.to(pattern.dtype)[:, None])
    scale = inputs.scaling / inputs.broadcast_temperature
    if rotary is not None and form == "averaged":
        turned = _turned_back_queries(inputs, rotary, pattern)
        moment = torch.einsum("bhij,bhijd,bhije->bhide", pattern, turned, turned)
    else:
        query = inputs.query.to(pattern.dtype)
        query = query if rotary is None else rotary.transpose_rotate(query)
        moment = query[..., :, None] * query[..., None, :]
    moment = moment * (torch.as_tensor(scale, dtype=pattern.dtype) ** 2)[..., None]
    moment, covariance = _by_key_head(inputs, moment), _by_key_head(inputs, covariance)
    return _as_matrices(torch.einsum("grde,grnm->gdnem", moment, covariance))


def _turned_back_queries(inputs: AttentionInputs, rotary: Rotary, pattern: Tensor) -> Tensor:
    """u_ij = R_jᵀ R_i q_i, [B, H, L, S, head_dim]."""
    batch, heads, length, keys = pattern.shape
    query = inputs.query.to(pattern.dtype)[:, :, :, None].expand(-1, -1, -1, keys, -1)
    # Key j turns query i back: fold the rows into the heads, so that the positions are those of the keys.
    return rotary.transpose_rotate(query.reshape(batch, heads * length, keys, -1)).view(query.shape)


def _key_covariances(inputs: AttentionInputs) -> Tensor:
    """(scaling/T)² Cov_{j∼a_i}(s_ij k_j) under every row's pattern, [B, H, L, head_dim, head_dim]."""
    pattern = row_patterns(inputs)
    key = inputs.key.to(pattern.dtype).repeat_interleave(inputs.query.shape[1] // inputs.key.shape[1], dim=1)
    return _covariance(pattern, _score_slopes(inputs, pattern), key)


def _score_slopes(inputs: AttentionInputs, pattern: Tensor) -> Tensor:
    """∂z_ij/∂(q_i·k_j), [B, H, L, S]."""
    slope = softcap_slope(inputs, torch.arange(inputs.length, device=pattern.device))
    scale = inputs.scaling / inputs.broadcast_temperature
    return (torch.ones_like(pattern) if slope is None else slope) * scale


def _covariance(pattern: Tensor, slope: Tensor | None, vectors_BHSV: Tensor) -> Tensor:
    """Cov_{j∼a_i}(s_ij v_j) for every row, [B, H, L, V, V]; vectors may be shared by the heads, [B, 1, S, V]."""
    mean_weight = pattern if slope is None else pattern * slope
    square_weight = mean_weight if slope is None else mean_weight * slope
    mean = mean_weight @ vectors_BHSV
    second = torch.einsum("bhij,bhjv,bhjw->bhivw", square_weight, vectors_BHSV, vectors_BHSV)
    return second - mean[..., :, None] * mean[..., None, :]


def _by_key_head(inputs: AttentionInputs, rows: Tensor) -> Tensor:
    """[B, H, L, ...] → [G, B · H/G · L, ...]: the rows that read each key head."""
    batch, heads, length = rows.shape[:3]
    key_heads = inputs.key.shape[1]
    rows = rows.reshape(batch, key_heads, heads // key_heads, length, *rows.shape[3:])
    return rows.movedim(1, 0).flatten(1, 3)


def _as_matrices(fisher_HDNDN: Tensor) -> Tensor:
    """[heads, D, N, D, N] → [heads, D · N, D · N]."""
    return fisher_HDNDN.flatten(3, 4).flatten(1, 2)
