"""How good an approximation of a Fisher matrix is: distances and eigenspaces."""

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.fisher.decomposition import KeyForm, factored_key_fisher, key_fisher
from natattn.fisher.rotary import Rotary


def relative_frobenius_error(approximate: Tensor, exact: Tensor) -> Tensor:
    """‖F̂ − F‖_F / ‖F‖_F over the last two dimensions; depends on the scale of F̂."""
    return _norm(approximate - exact) / _norm(exact)


def cosine(approximate: Tensor, exact: Tensor) -> Tensor:
    """⟨F̂, F⟩ / (‖F̂‖_F ‖F‖_F) over the last two dimensions: 1 where F̂ is F up to a positive factor."""
    return (approximate * exact).sum((-2, -1)) / (_norm(approximate) * _norm(exact))


def eigenspace_overlap(approximate: Tensor, exact: Tensor, k: int) -> Tensor:
    """‖Ûᵀ U‖_F² / k for the eigenvectors of the k largest eigenvalues of symmetric F̂ and F.

    1 where they span the same space, k/dim on average for a random one. Where the k-th and the next eigenvalue of
    either matrix are equal the space, and with it the overlap, is not determined.
    """
    approximate_vectors: Tensor = torch.linalg.eigh(approximate).eigenvectors[..., -k:]
    exact_vectors: Tensor = torch.linalg.eigh(exact).eigenvectors[..., -k:]
    return (approximate_vectors.mT @ exact_vectors).square().sum((-2, -1)) / k


def rotary_key_error(inputs: AttentionInputs, input_BSN: Tensor, rotary: Rotary, form: KeyForm = "averaged") -> Tensor:
    """Relative Frobenius error per key head, [G], of a ``factored_key_fisher`` under rotary embedding."""
    factored = factored_key_fisher(inputs, input_BSN, rotary, form)
    return relative_frobenius_error(factored, key_fisher(inputs, input_BSN, rotary))


def _norm(matrix: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions."""
    return matrix.square().sum((-2, -1)).sqrt()
