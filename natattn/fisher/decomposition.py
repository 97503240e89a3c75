"""The attention-Fisher of any parameter (note D, D1), and distances between an approximation and a Fisher matrix.

The attention-Fisher of a parameter θ of the scores is the Fisher information of the patterns a_i = softmax(z_i), taken
as distributions over keys. Sums run over the query rows of all sequences; divide by their number for the mean.

Layout: a projection W of one head is [head_dim, n_embd] as in ``torch.nn.Linear``, and vec(W) = W.flatten() is
row-major. The gradient of score z_ij is scaling · k_j x_iᵀ for W_Q, whose vec is k_j ⊗ x_i: the head_dim factor comes
*first* in every Kronecker product here (the note writes the column-major order, with the input factor first). A bias is
one more column of W, whose input is 1.

Shape suffixes as in ``natattn.attention.energy``.
"""

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs, row_energies


def score_fisher(pattern: Tensor) -> Tensor:
    """Return the score-space blocks M_i = diag(a_i) − a_i a_iᵀ = ∇² log Z_i: [..., S] → [..., S, S]."""
    return torch.diag_embed(pattern) - pattern[..., :, None] * pattern[..., None, :]


def attention_fisher(jacobian: Tensor, pattern: Tensor) -> Tensor:
    """Return Σ_i J_iᵀ (diag(a_i) − a_i a_iᵀ) J_i (D1, for any parameter) without forming the blocks.

    Args:
        jacobian: [..., S, P], derivatives of each row's scores z_i = E_i / T.
        pattern: [..., S], 0 on forbidden pairs.

    Returns: [P, P].
    """
    jacobian = jacobian.reshape(-1, *jacobian.shape[-2:])
    pattern = pattern.reshape(-1, pattern.shape[-1])
    # The Jacobian of forbidden pairs may be any finite number: their weight is 0.
    mean = torch.einsum("rs,rsp->rp", pattern, jacobian)
    deviation = (jacobian - mean[:, None]) * pattern[..., None].sqrt()
    flat = deviation.flatten(0, 1)
    return flat.mT @ flat


def softcap_slope(inputs: AttentionInputs, rows_R: Tensor) -> Tensor | None:
    """Return the derivative of the soft-cap at each score, 1 − tanh²(E/c), [B, H, R, S]; None without a soft-cap."""
    if inputs.softcap is None:
        return None
    uncapped = row_energies(inputs.query, inputs.key, rows_R, inputs.scaling)
    return 1 - torch.tanh(uncapped / inputs.softcap).square()


def relative_frobenius_error(approximate: Tensor, exact: Tensor) -> Tensor:
    """Return ‖F̂ − F‖_F / ‖F‖_F over the last two dimensions; it depends on the scale of F̂."""
    return _norm(approximate - exact) / _norm(exact)


def cosine(approximate: Tensor, exact: Tensor) -> Tensor:
    """Return ⟨F̂, F⟩ / (‖F̂‖_F ‖F‖_F) over the last two dimensions: 1 if F̂ is F up to a positive factor."""
    return (approximate * exact).sum((-2, -1)) / (_norm(approximate) * _norm(exact))


def _norm(matrix: Tensor) -> Tensor:
    return matrix.square().sum((-2, -1)).sqrt()
