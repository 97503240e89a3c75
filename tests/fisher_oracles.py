"""Float64 oracles of the attention-Fisher: dense closed forms (D1-Q, D1-K), automatic differentiation, and quality
measures of approximations. For small cases only.

Layout and shape suffixes as in ``natattn.fisher.decomposition``; N is n_embd, P a number of parameters.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.func import jacrev

from natattn.attention.energy import AttentionInputs
from natattn.attention.patterns import masked_softmax, row_patterns
from natattn.fisher.decomposition import attention_fisher, relative_frobenius_error, softcap_slope
from natattn.fisher.kronecker import Rotary

KeyForm = Literal["averaged", "plain"]
Parameters = Mapping[str, Tensor]


def with_ones(input_BLN: Tensor) -> Tensor:
    """Return [x, 1], the input of a projection whose bias is its last column, [B, L, N+1]."""
    return torch.nn.functional.pad(input_BLN, (0, 1), value=1.0)


def query_fisher(inputs: AttentionInputs, input_BLN: Tensor, rotary: Rotary | None = None) -> Tensor:
    """Return F(W_Q) per query head (D1-Q) = (scaling/T)² Σ_i Cov_{j∼a_i}(k_j) ⊗ x_i x_iᵀ.

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
    """Return D1-K, F(W_K) per key head = (scaling/T)² Σ_i q_i q_iᵀ ⊗ Cov_{j∼a_i}(x_j) over the group too.

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
    """Return D1-K with a product in every row, Σ_i (queries' second moment) ⊗ Cov_{j∼a_i}(x_j): [G, D · N, D · N].

    Exact without rotary embedding, where the second moment is q_i q_iᵀ. With it, it is E_{j∼a_i}[u_ij u_ijᵀ] of the
    turned queries u_ij = R_jᵀ R_i q_i ("averaged", which the Kronecker factors use), or their value at j = i, the query
    before rotation ("plain"). Both are approximations, measured by ``rotary_key_error``:
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


def rotary_key_error(inputs: AttentionInputs, input_BSN: Tensor, rotary: Rotary, form: KeyForm = "averaged") -> Tensor:
    """Return the relative Frobenius error per key head, [G], of a ``factored_key_fisher`` under rotary embedding."""
    factored = factored_key_fisher(inputs, input_BSN, rotary, form)
    return relative_frobenius_error(factored, key_fisher(inputs, input_BSN, rotary))


def attention_fisher_by_autograd(
    scores: Callable[[Parameters], Tensor], parameters: Parameters, allowed: Tensor | None = None
) -> Tensor:
    """Return D1 with the Jacobian of the scores from ``torch.func.jacrev``, in float64.

    Args:
        scores: parameters → z [..., S], one softmax per row of the last dimension; any finite number where forbidden.
        parameters: cast to float64 here; what else ``scores`` uses should be float64 too.
        allowed: bool, broadcastable to z; None allows every pair. Rows without an allowed key contribute nothing.

    Returns: float64 [P, P], in the order of ``parameters``, each flattened row-major.
    """
    vector, as_parameters = _flatten(parameters)
    score = scores(as_parameters(vector)).detach()
    if allowed is not None:
        score = score.masked_fill(~allowed, -torch.inf)
    jacobian = jacrev(lambda flat: scores(as_parameters(flat)))(vector)
    return attention_fisher(jacobian.detach(), masked_softmax(score))


def model_fisher(logits: Callable[[Parameters], Tensor], parameters: Parameters) -> Tensor:
    """Return a model's own Fisher, exact over its classes: Σ_rows Σ_c p_c ∇log p_c ∇log p_cᵀ, in float64.

    Args:
        logits: parameters → [..., classes]; rows are independent predictions, so leave out those that the loss ignores.
        parameters: cast to float64 here.

    Returns: float64 [P, P], in the order of ``parameters``; memory O(rows · classes · P).
    """
    vector, as_parameters = _flatten(parameters)

    def log_probabilities(flat: Tensor) -> Tensor:
        return torch.log_softmax(logits(as_parameters(flat)), -1)

    gradients: Tensor = jacrev(log_probabilities)(vector).detach().flatten(0, -2)
    probability = log_probabilities(vector).detach().exp().flatten()
    return (gradients * probability[:, None]).mT @ gradients


def eigenspace_overlap(approximate: Tensor, exact: Tensor, k: int) -> Tensor:
    """Return ‖Ûᵀ U‖_F² / k for the eigenvectors of the k largest eigenvalues of symmetric F̂ and F.

    It is 1 if they span the same space and k/dim on average for a random one. It is not determined if the k-th and the
    next eigenvalue of either matrix are equal.
    """
    approximate_vectors: Tensor = torch.linalg.eigh(approximate).eigenvectors[..., -k:]
    exact_vectors: Tensor = torch.linalg.eigh(exact).eigenvectors[..., -k:]
    return (approximate_vectors.mT @ exact_vectors).square().sum((-2, -1)) / k


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


def _flatten(parameters: Parameters) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """All parameters as one float64 vector, and the way back."""
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    vector = torch.cat([parameter.detach().double().flatten() for parameter in parameters.values()])

    def as_parameters(flat: Tensor) -> dict[str, Tensor]:
        pieces = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    return vector, as_parameters


def pattern_change(
    fisher: Tensor, step: Tensor, scores: Tensor, scores_after: Tensor, allowed: Tensor
) -> tuple[float, float]:
    """Return ½ δᵀ F δ and the divergence Σ_i KL(a_i ‖ a_i') that it predicts, in nats.

    Args:
        fisher: [P, P], summed over rows, in the layout of ``step.flatten()``.
        step: δ, the change of the parameter.
        scores, scores_after: z of each row before and after the step, [..., S].
        allowed: bool, broadcastable to the scores; rows without an allowed key change nothing.
    """
    flat = step.flatten()
    allowed = allowed.expand_as(scores)
    has_key = allowed.any(-1, keepdim=True)
    before, after = (
        torch.log_softmax(z.masked_fill(~allowed & has_key, -torch.inf), -1) for z in (scores, scores_after)
    )
    divergence = before.exp() * (before - after).masked_fill(~allowed, 0.0)
    return float(0.5 * flat @ fisher @ flat), float(divergence.sum())
