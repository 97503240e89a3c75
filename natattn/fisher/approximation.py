"""How good an approximation of a Fisher matrix is: distances, eigenspaces, conditioning, and what it predicts."""

from dataclasses import dataclass

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


def condition_number(matrix: Tensor) -> Tensor:
    """λ_max / λ_min of a symmetric positive semi-definite matrix; infinite where λ_min is 0 to rounding."""
    values = torch.linalg.eigvalsh(matrix)
    smallest, largest = values[..., 0], values[..., -1]
    rounding = largest * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    return torch.where(smallest > rounding, largest / smallest, torch.inf)


def preconditioned(fisher: Tensor, inverse_root: Tensor) -> Tensor:
    """P^(−1/2) F P^(−1/2): its spectrum is what a step preconditioned by P sees of the Fisher F."""
    return inverse_root @ fisher @ inverse_root


def rotary_key_error(inputs: AttentionInputs, input_BSN: Tensor, rotary: Rotary, form: KeyForm = "averaged") -> Tensor:
    """Relative Frobenius error per key head, [G], of a ``factored_key_fisher`` under rotary embedding."""
    factored = factored_key_fisher(inputs, input_BSN, rotary, form)
    return relative_frobenius_error(factored, key_fisher(inputs, input_BSN, rotary))


@dataclass(frozen=True)
class PatternChange:
    """Kullback–Leibler divergence of the patterns before a step from those after it, summed over rows, in nats.

    Attributes:
        predicted: ½ δᵀ F δ.
        measured: Σ_i KL(a_i ‖ a_i').
    """

    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted: tends to 1 as the step shrinks, with an error of its first order."""
        return self.measured / self.predicted


def pattern_change(
    fisher: Tensor, step: Tensor, scores: Tensor, scores_after: Tensor, allowed: Tensor
) -> PatternChange:
    """What a Fisher matrix says that a step does to the attention patterns, and what it did.

    Args:
        fisher: [P, P], summed over rows, in the layout of ``step.flatten()``.
        step: δ, the change of the parameter.
        scores, scores_after: z of each row before and after the step, [..., S].
        allowed: bool, broadcastable to the scores; rows without an allowed key change nothing.
    """
    flat = step.flatten()
    predicted = 0.5 * flat @ fisher @ flat
    allowed = allowed.expand_as(scores)
    has_key = allowed.any(-1, keepdim=True)
    before, after = (
        torch.log_softmax(z.masked_fill(~allowed & has_key, -torch.inf), -1) for z in (scores, scores_after)
    )
    divergence = before.exp() * (before - after).masked_fill(~allowed, 0.0)
    return PatternChange(predicted=float(predicted), measured=float(divergence.sum()))


def _norm(matrix: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions."""
    return matrix.square().sum((-2, -1)).sqrt()
