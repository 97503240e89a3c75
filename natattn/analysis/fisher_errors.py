"""Errors of approximations of the attention-Fisher information, in score space and of W_Q (claims F1, F3).

Score space, from a pattern A [L, L] whose rows are queries: F = mean_i (diag(a_i) − a_i a_iᵀ) = diag(ā) − AᵀA/L, keys
by keys. Parameter space, for W_Q of one head (note D, D1-Q): F = mean_i C_i ⊗ x_i x_iᵀ with C_i = (scaling/T)²
Cov_{j∼a_i}(k_j), in the row-major layout of ``natattn.fisher.decomposition``. Its P × P matrix, P = head_dim · n_embd,
is never formed: ⟨C ⊗ xxᵀ, C' ⊗ x'x'ᵀ⟩ = ⟨C, C'⟩ (x·x')², so that Frobenius products are sums over pairs of rows. Where
the rows are a sample of a text's, a row paired with itself would make F longer than it is (isotropic inputs of width
400, 500 rows: ‖F‖² by 80 %): all products are then means over distinct rows, unbiased U-statistics (Hoeffding 1948).

W_K is left out: its Cov_{a_i}(x) is n_embd × n_embd for every row, and does not shrink in products of pairs.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from natattn.fisher.decomposition import cosine, relative_frobenius_error

KEY_GRAM, QUERY_GRAM, SYMMETRISED, MARGINAL = "AᵀA/L, keys × keys", "A Aᵀ/L, as printed", "(A + Aᵀ)/2L", "diag(mean a)"
IDENTITY_AND_PATTERN, IDENTITY, FITTED = "I + (A + Aᵀ)/2", "identity", "I + c (A + Aᵀ)/2, best c"
KRONECKER, DIAGONAL, INPUT, TRACED = "Kronecker S ⊗ A", "diagonal", "input only, I ⊗ A", "input by trace, I ⊗ Ā"
QUERY_APPROXIMANTS = (KRONECKER, TRACED, INPUT, DIAGONAL, IDENTITY)
EXACT, KFAC, OWN_DIAGONAL = "attention-Fisher, exact", "K-FAC, mean δδᵀ ⊗ A", "its own diagonal"
TRUE_APPROXIMANTS = (EXACT, *QUERY_APPROXIMANTS, KFAC, OWN_DIAGONAL)


@dataclass(frozen=True, eq=False)
class Agreement:
    """An approximation against what it approximates, tensors of any one shape.

    Attributes:
        cosine: ⟨F̂, F⟩ / (‖F̂‖ ‖F‖), Frobenius; an unbiased estimate of the three may exceed 1.
        error: ‖F̂ − F‖ / ‖F‖ as it is; nan where F̂ has no scale of its own.
        overlap: share of the top eigenspaces that is common; None where it was not computed.
    """

    cosine: Tensor
    error: Tensor
    overlap: Tensor | None = None

    @property
    def best_scale_error(self) -> Tensor:
        """min over c > 0 of ‖c F̂ − F‖ / ‖F‖ = √(1 − cosine²); 1 where the cosine is not positive."""
        return (1 - self.cosine.clamp(0, 1).square()).sqrt()


@dataclass(frozen=True, eq=False)
class ScoreFisher:
    """The mean Fisher of a pattern's rows.

    Attributes:
        pattern: A, float64 [..., L, L], rows the queries, each with a sum of 1.
    """

    pattern: Tensor

    @cached_property
    def exact(self) -> Tensor:
        """F = diag(ā) − AᵀA/L, [..., L, L]."""
        return torch.diag_embed(self.pattern.mean(-2)) - self.pattern.mT @ self.pattern / self.pattern.shape[-1]

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues in rising order, [..., L], and eigenvectors as columns, [..., L, L]."""
        values, vectors = torch.linalg.eigh(self.exact)
        return values.clamp_min(0.0), vectors

    def approximants(self) -> dict[str, Tensor]:
        """Return the readings of claim F1, all normalised like a mean over rows, [..., L, L]."""
        length = self.pattern.shape[-1]
        return {
            KEY_GRAM: self.pattern.mT @ self.pattern / length,
            QUERY_GRAM: self.pattern @ self.pattern.mT / length,
            SYMMETRISED: (self.pattern + self.pattern.mT) / (2 * length),
            MARGINAL: torch.diag_embed(self.pattern.mean(-2)),
        }

    def agreements(self, k: int) -> dict[str, Agreement]:
        """Claim F1, with the overlap of the eigenspaces of the k largest eigenvalues; k/L is that of a random space.

        The overlap is ‖Ûᵀ U‖_F² / k; F is decomposed once for all approximants.
        """
        top = self.eigen[1][..., -k:]
        found = {}
        for name, approximate in self.approximants().items():
            vectors = torch.linalg.eigh(approximate).eigenvectors[..., -k:]
            overlap = (vectors.mT @ top).square().sum((-2, -1)) / k
            error = relative_frobenius_error(approximate, self.exact)
            found[name] = Agreement(cosine(approximate, self.exact), error, overlap)
        return found

    def inverse_agreements(self, damping: float) -> tuple[dict[str, Agreement], Tensor]:
        """Claim F3, (F + λI)⁻¹ ≈ I + A, with the symmetric part of A; beside it I alone, and I + c·A for the best c.

        Args:
            damping: λ in units of F's mean eigenvalue.

        Returns: the agreements, without errors as they are (I + A has no units, F⁻¹ has), and the best c, [...]: the
            least-squares fit of αI + βA has c = β/α. A c below 0 says that A has the wrong sign.
        """
        values, vectors = self.eigen
        identity = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
        inverse = 1 / (values + damping * values.mean(-1, keepdim=True))
        exact = (vectors * inverse[..., None, :]) @ vectors.mT
        symmetric = (self.pattern + self.pattern.mT) / 2
        deviation = symmetric - _mean_diagonal(symmetric)[..., None, None] * identity  # ⟂ I
        slope = (deviation * exact).sum((-2, -1)) / deviation.square().sum((-2, -1))
        fitted = inverse.mean(-1)[..., None, None] * identity + slope[..., None, None] * deviation
        approximants = {IDENTITY_AND_PATTERN: identity + symmetric, IDENTITY: identity, FITTED: fitted}
        cosines = {name: cosine(approximate, exact) for name, approximate in approximants.items()}
        found = {name: Agreement(value, torch.full_like(value, math.nan)) for name, value in cosines.items()}
        return found, slope / (inverse.mean(-1) - slope * _mean_diagonal(symmetric))


@dataclass(frozen=True, eq=False)
class QueryRows:
    """Query rows of one head, from B sequences with R rows of each; float64 for exact work.

    Attributes:
        inputs: x_i, what W_Q multiplies, [B, R, N].
        covariances: C_i = (scaling/T)² Cov_{j∼a_i}(k_j), [B, R, D, D].
    """

    inputs: Tensor
    covariances: Tensor

    @property
    def parameters(self) -> int:
        """P = D · N."""
        return self.inputs.shape[-1] * self.covariances.shape[-1]


@dataclass(frozen=True, eq=False)
class Products:
    """Frobenius products of F(W_Q) and its approximants, scalars by name.

    Attributes:
        exact_square: ⟨F, F⟩.
        inner: ⟨F, F̂⟩.
        square: ⟨F̂, F̂⟩.
        input_square: ⟨A, A⟩ of A = mean x xᵀ.
    """

    exact_square: Tensor
    inner: dict[str, Tensor]
    square: dict[str, Tensor]
    input_square: Tensor

    def agreements(self) -> dict[str, Agreement]:
        """Return the agreement of every approximant with F; identity and I ⊗ A have no scale of their own."""
        found = {}
        for name, inner in self.inner.items():
            square = self.square[name]
            distance = (square - 2 * inner + self.exact_square).clamp_min(0.0)
            error = (distance / self.exact_square).sqrt()
            if name in (IDENTITY, INPUT):
                error = torch.full_like(error, math.nan)
            found[name] = Agreement(inner / (square * self.exact_square).sqrt(), error)
        return found


def query_products(rows: QueryRows, *, sampled: bool = True) -> Products:
    """Products of F = mean_i C_i ⊗ x_i x_iᵀ with S ⊗ A (means of both), I/D ⊗ Ā (Ā = mean tr C_i x_i x_iᵀ), I ⊗ A,
    diag F and I.

    Args:
        rows: M = B · R rows, at least 4 if sampled; O(M² (N + D²)).
        sampled: the rows are a sample: products are means over distinct rows, unbiased for those of independent rows.
            Otherwise F is the mean over these very rows, and the products are exact.

    Raises: ValueError for fewer than 4 rows of a sample.
    """
    inputs, covariances = rows.inputs.flatten(0, 1), rows.covariances.flatten(0, 1)
    count, dim = len(inputs), covariances.shape[-1]
    if sampled and count < 4:
        raise ValueError(f"{count} rows: unbiased products need at least 4")
    flat, diagonals = covariances.flatten(1), covariances.diagonal(dim1=-2, dim2=-1)
    trace = diagonals.sum(-1)
    outer_MM, covariance_MM = (inputs @ inputs.mT).square(), flat @ flat.mT
    diagonal_MM = (inputs.square() @ inputs.square().mT) * (diagonals @ diagonals.mT)
    if sampled:
        for matrix in (outer_MM, covariance_MM, diagonal_MM):
            matrix.fill_diagonal_(0.0)
    pairs = math.perm(count, 2) if sampled else count**2
    two, three, four = _means_of_products(outer_MM, covariance_MM, sampled)
    outer = outer_MM.sum(1) / pairs
    traced, of_diagonal, input_square = trace @ outer_MM @ trace / pairs / dim, diagonal_MM.sum() / pairs, outer.sum()
    identity = (trace * inputs.square().sum(-1)).mean()
    inner = {KRONECKER: three, TRACED: traced, INPUT: outer @ trace, DIAGONAL: of_diagonal, IDENTITY: identity}
    square = inner | {KRONECKER: four, INPUT: dim * input_square, IDENTITY: torch.full_like(identity, rows.parameters)}
    return Products(two, inner, square, input_square)


def _means_of_products(first: Tensor, second: Tensor, distinct: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Means of first_ij second_ij, of first_ij second_ik, and of first_ij second_kl, for symmetric [M, M].

    With ``distinct`` no two of the indices are the same; the diagonals are 0 then.
    """
    count = len(first)
    two, three, four = (first * second).sum(), first.sum(1) @ second.sum(1), first.sum() * second.sum()
    if not distinct:
        return two / count**2, three / count**3, four / count**4
    four = four - 4 * three + 2 * two  # without the quadruples that share one index, or two
    return two / math.perm(count, 2), (three - two) / math.perm(count, 3), four / math.perm(count, 4)


@dataclass(frozen=True, eq=False)
class QueryGradients:
    """Gradients of log p(labels) by W_Q of one head, the labels drawn from the model's own predictions.

    Attributes:
        gradients: sums over a sequence's tokens, [B, draws, D, N]. Labels are independent given the tokens, so that the
            mean outer product is the true Fisher of a sequence.
        deltas: mean over tokens and draws of δδᵀ, δ the gradient by the query, [B, D, D].
    """

    gradients: Tensor
    deltas: Tensor


def true_cosines(true: QueryGradients, rows: QueryRows, products: Products) -> dict[str, Tensor]:
    """Cosine of the model's true Fisher of W_Q with the attention-Fisher and its approximants.

    All products with the true Fisher are means over pairs of different sequences (for S ⊗ A of different rows too), so
    that neither the noise of the labels nor that of the sample is in them.

    Args:
        true, rows: of the same B ≥ 3 sequences in the same order.
        products: ``query_products`` of ``rows``.

    Returns: by name, [1 + B]: the cosine, and those without each of the sequences, for the jackknife; the rows behind
        the norms of the attention-Fisher stay all in.
    Raises: ValueError for fewer than 3 sequences.
    """
    count = len(true.gradients)
    if count < 3:
        raise ValueError(f"{count} sequences: the true Fisher needs at least 3")
    flat = true.gradients.flatten(2)
    gram = (flat.flatten(0, 1) @ flat.flatten(0, 1).mT).square()
    draws = flat.shape[1]
    true_square = _leave_one_out(gram.view(count, draws, count, draws).mean((1, 3)))
    squared = flat.square().mean(1)
    inner = {name: _leave_one_out(pairs) for name, pairs in _true_pairs(true, rows).items()}
    inner[IDENTITY] = _leave_one_out(squared.sum(-1, keepdim=True).expand(-1, count))
    own = _leave_one_out(squared @ squared.mT)
    deltas = true.deltas.flatten(1)
    square = products.square | {
        EXACT: products.exact_square,
        KFAC: _leave_one_out(deltas @ deltas.mT) * products.input_square,
        OWN_DIAGONAL: own,
    }
    inner[OWN_DIAGONAL] = own
    return {name: inner[name] / (true_square * square[name]).sqrt() for name in TRUE_APPROXIMANTS}


def _true_pairs(true: QueryGradients, rows: QueryRows) -> dict[str, Tensor]:
    """⟨true Fisher of sequence b, approximant⟩ with rows of sequence c in it, [B, B]; b = c means nothing."""
    count, per_sequence = rows.inputs.shape[:2]
    diagonals_CRD = rows.covariances.diagonal(dim1=-2, dim2=-1)
    trace_CR, covariance_CDE = diagonals_CRD.sum(-1), rows.covariances.mean(1)
    others_BDE, delta_others_BDE = (
        (each.sum(0) - each) / (count - 1) for each in (covariance_CDE, true.deltas.to(covariance_CDE.dtype))
    )
    found: dict[str, list[Tensor]] = {name: [] for name in (EXACT, KRONECKER, TRACED, INPUT, KFAC)}
    for gradients, others, delta_others in zip(true.gradients, others_BDE, delta_others_BDE, strict=True):
        # ⟨g gᵀ, C ⊗ x xᵀ⟩ = vᵀ C v with v = G x.
        projected = torch.einsum("sdn,crn->crsd", gradients, rows.inputs)
        second_CRDE = projected.mT @ projected / len(gradients)
        length_CR, summed_CDE = second_CRDE.diagonal(dim1=-2, dim2=-1).sum(-1), second_CRDE.mean(1)
        exact = (second_CRDE * rows.covariances).sum((-2, -1)).mean(1)
        product = (summed_CDE * others).sum((-2, -1))
        distinct = (count - 1) * per_sequence
        found[EXACT].append(exact)
        found[KRONECKER].append((distinct * product - exact) / (distinct - 1))  # without C and x of the same row
        found[TRACED].append((length_CR * trace_CR).mean(1) / rows.covariances.shape[-1])
        found[INPUT].append(length_CR.mean(1))
        found[KFAC].append((summed_CDE * delta_others).sum((-2, -1)))
    diagonal_CDN = torch.einsum("crd,crn->cdn", diagonals_CRD, rows.inputs.square()) / per_sequence
    squared_BDN = true.gradients.square().mean(1)
    of_diagonal = squared_BDN.flatten(1) @ diagonal_CDN.flatten(1).mT
    return {name: torch.stack(lines) for name, lines in found.items()} | {DIAGONAL: of_diagonal}


def _leave_one_out(pairs: Tensor) -> Tensor:
    """Mean of a matrix [B, B] off its diagonal, and the same without each of the indices, [1 + B]."""
    count = len(pairs)
    pairs = pairs.clone().fill_diagonal_(0.0)
    total = pairs.sum()
    without = (total - pairs.sum(0) - pairs.sum(1)) / ((count - 1) * (count - 2))
    return torch.cat([total[None] / (count * (count - 1)), without])


def _mean_diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
