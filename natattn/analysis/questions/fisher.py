"""Claims F1, F3 and F4: approximations of attention's Fisher information, and what preconditioning does to it.

Score space, per head: F = mean_i (diag(a_i) − a_i a_iᵀ) is compared with products of attention patterns (F1), and its
damped inverse with I + A (F3). Parameter space, for W_Q: the exact attention-Fisher and the model's own Fisher are
compared with what optimizers use (F1), and the spectrum is measured after preconditioning (F4). Errors are Frobenius
errors at the best scale c, relative to the norm of what is approximated. ``fisher_claims`` shows and judges the result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from natattn.analysis import fisher_errors as fisher
from natattn.analysis.fisher_capture import Place, query_gradients, query_rows
from natattn.analysis.fisher_conditioning import PRECONDITIONERS, Conditioning, conditioning, preconditioners
from natattn.analysis.fisher_errors import Agreement, Products, QueryRows
from natattn.analysis.patterns import attention_patterns
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.attention.layers import attention_layers
from natattn.report.section import Advance, interval_text, shown
from natattn.statistics.paired import t_interval

Rows = tuple[tuple[float, ...], ...]
Interval = tuple[float, float]
Agreements = Mapping[str, Agreement]

SCORE_SEQUENCES = 4
TOP = 8  # eigenvectors
DAMPINGS = (0.01, 0.1, 1.0)  # of F3, in units of the mean eigenvalue
CLAIMED_DAMPING = 0.1
GOOD, POOR = 0.1, 0.5  # errors at the best scale
LAYERS = 6  # measured in parameter space, evenly spread
SEQUENCES = 32
ROWS = 512  # of a head, over the sequences
DRAWS = 4  # of labels
CONDITIONED_HEADS = 4
COVARIANCE_NUMBERS = 2**23  # of a head's rows for the spectra: 32 MB in float32


@dataclass(frozen=True)
class Likeness:
    """An approximation against what it approximates, over heads.

    Attributes:
        cosine, least, greatest: mean and range of the cosine over heads.
        error: mean error without a scale; nan if the approximation has no scale of its own.
        best_scale_error: mean error at the best scale.
    """

    cosine: float
    least: float
    greatest: float
    error: float
    best_scale_error: float

    @property
    def error_range(self) -> Interval:
        """The error at the best scale of the best and of the worst head: √(1 − cosine²), 1 if that is negative."""
        best, worst = (math.sqrt(1 - min(1.0, max(0.0, cosine)) ** 2) for cosine in (self.greatest, self.least))
        return best, worst

    @property
    def words(self) -> str:
        """The mean error at the best scale in a word, with its article."""
        error = self.best_scale_error
        return "a good" if error < GOOD else "a poor" if error > POOR else "a rough"

    @property
    def error_text(self) -> str:
        """Mean and range of the error at the best scale."""
        return f"{shown(self.best_scale_error)} {interval_text(*self.error_range)}"

    @property
    def cosine_text(self) -> str:
        """Mean and range of the cosine."""
        return f"{shown(self.cosine)} {interval_text(self.least, self.greatest)}"


@dataclass(frozen=True)
class OfScores(Likeness):
    """An approximation of F in score space.

    Attributes:
        overlap: mean, least and greatest share of the top eigenspaces that is common; None without eigenspaces.
        heads, interval: 95 % t interval of the error at the best scale, over so many heads.
        gap, gap_interval: of the error at the best scale above that of diag(mean a).
    """

    overlap: tuple[float, float, float] | None
    heads: int
    interval: Interval
    gap: float
    gap_interval: Interval


@dataclass(frozen=True)
class OfInverse(Likeness):
    """An approximation of (F + λI)⁻¹.

    Attributes:
        coefficient: mean over heads of the fitted c in I + c·A; None if it is not fitted.
        gap, gap_interval: of the error at the best scale above that of the identity, over ``heads``.
    """

    coefficient: float | None
    gap: float
    heads: int
    gap_interval: Interval


@dataclass(frozen=True)
class Inverse:
    """F3 at one damping, in units of the mean eigenvalue."""

    damping: float
    approximations: dict[str, OfInverse]


@dataclass(frozen=True)
class ScoreSpace:
    """F1 and F3 in score space.

    Attributes:
        layers, heads, length: indices of the layers, heads of all layers, and tokens of a sequence.
        closer: number of heads in which A Aᵀ over the keys has a smaller error than diag(mean a).
        cosines: [layers, heads of a layer] of A Aᵀ over the keys and of diag(mean a).
        inverse_closer, negative: numbers of heads in which, at the declared damping, I + A has a smaller error than I,
            and in which the fitted coefficient of A is negative.
        spectra: eigenvalues of F in units of their mean, in falling order, of some layers; empty if not recorded.
    """

    layers: tuple[int, ...]
    heads: int
    length: int
    approximations: dict[str, OfScores]
    closer: int
    cosines: dict[str, Rows]
    inverses: tuple[Inverse, ...]
    inverse_closer: int
    negative: int
    spectra: dict[int, tuple[float, ...]]

    @property
    def claimed_inverse(self) -> Inverse:
        """F3 at the declared damping."""
        return next(inverse for inverse in self.inverses if inverse.damping == CLAIMED_DAMPING)


@dataclass(frozen=True)
class QuerySpace:
    """F1 for W_Q against the exact attention-Fisher.

    Attributes:
        layers: indices of the measured layers, ``layer_count`` of all.
        heads: number of measured heads.
        cosines: [layers, heads of a layer] of the Kronecker product.
    """

    layers: tuple[int, ...]
    layer_count: int
    heads: int
    approximations: dict[str, Likeness]
    cosines: Rows


@dataclass(frozen=True)
class OfTrue(Likeness):
    """An approximation of the model's own Fisher; ``interval`` is that of the mean cosine, by the jackknife."""

    interval: Interval


@dataclass(frozen=True)
class TrueFisher:
    """F1 for W_Q against the model's own Fisher; ``cosines`` [layers, heads] are those of the attention-Fisher."""

    sequences: int
    approximations: dict[str, OfTrue]
    cosines: Rows


@dataclass(frozen=True)
class Preconditioned:
    """The damped attention-Fisher of W_Q after one preconditioner, over heads.

    Attributes:
        largest, least, greatest: mean and range of λ_max / mean eigenvalue.
        evenness: mean of (mean eigenvalue)² / mean squared eigenvalue.
        log_ratio, heads, interval: of λ_max / mean to that without a preconditioner, 95 % t interval over heads.
        spectrum: largest eigenvalues in units of their mean, geometric means over heads; empty if not recorded.
    """

    largest: float
    least: float
    greatest: float
    evenness: float
    log_ratio: float
    heads: int
    interval: Interval
    spectrum: tuple[float, ...]


@dataclass(frozen=True)
class FisherErrors:
    """The result for one model. The parts about W_Q are the reason, as a sentence, if they were not measured.

    Attributes:
        conditioning: by preconditioner.
    """

    score: ScoreSpace
    query: QuerySpace | str
    true: TrueFisher | str
    conditioning: dict[str, Preconditioned] | str


NO_QUERIES = (
    "The queries of this model are not W_Q x + b as they enter the softmax (rotary embedding, a norm, or a projection "
    "of unknown name): the parameter space (F1, F4) is left out."
)


def measure(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> FisherErrors:
    """Measure errors of what stands for the Fisher and its inverse, and spectra after preconditioning."""
    score = measure_scores(subject)
    tokens = subject.beginning(SEQUENCES)
    advance(len(tokens))
    layers = [found.layer for found in attention_layers(subject.model)]
    spread = sorted({layers[round(index)] for index in np.linspace(0, len(layers) - 1, min(LAYERS, len(layers)))})
    heads = range(score.heads // len(score.layers))
    sampled = query_rows(
        subject.model, tokens, dict.fromkeys(spread, heads), max(4, ROWS // len(tokens)), seed=settings.seed,
        batch_size=settings.text.batch_size,
    )  # fmt: skip
    advance(len(tokens))
    if not sampled:
        return FisherErrors(score, NO_QUERIES, NO_QUERIES, NO_QUERIES)
    rows = {
        place: QueryRows(sampled[place].inputs.double(), sampled[place].covariances.double())
        for place in sorted(sampled)
    }
    products = [fisher.query_products(of_head) for of_head in rows.values()]
    by_head = [of_head.agreements() for of_head in products]
    agreements = {
        name: Agreement(torch.stack([a[name].cosine for a in by_head]), torch.stack([a[name].error for a in by_head]))
        for name in fisher.QUERY_APPROXIMANTS
    }
    chosen = tuple(sorted({layer for layer, _ in rows}))
    query = QuerySpace(
        chosen, len(layers), len(rows), {name: Likeness(*_likeness(found)) for name, found in agreements.items()},
        _by_layer(agreements[fisher.KRONECKER].cosine, len(chosen)),
    )  # fmt: skip
    true = _measure_true(subject, settings, rows, products, advance)
    return FisherErrors(score, query, true, _measure_conditioning(subject, settings, rows))


def measure_scores(subject: Subject) -> ScoreSpace:
    """Measure F1 and F3 in score space, from the patterns of the first sequences."""
    tokens = subject.beginning(SCORE_SEQUENCES)
    patterns, length = attention_patterns(subject.model, tokens), tokens.shape[1]
    spaces = [fisher.ScoreFisher(pattern.double()) for pattern in patterns.values()]
    eigenvalues = [space.eigen[0].flip(-1) for space in spaces]
    agreements = _mean_over_sequences([space.agreements(top_count(length)) for space in spaces])
    # ⟨I, F⟩ / (‖I‖ ‖F‖) = Σλ / √(L Σλ²).
    identity = torch.stack([
        (values.sum(-1) / (length * values.square().sum(-1)).sqrt()).nanmean(0) for values in eigenvalues
    ])  # fmt: skip
    agreements[fisher.IDENTITY] = Agreement(identity, torch.full_like(identity, torch.nan))
    marginal = agreements[fisher.MARGINAL].best_scale_error
    approximations = {}
    for name, found in agreements.items():
        error, overlap = found.best_scale_error, found.overlap
        count, interval = over_heads(error)
        approximations[name] = OfScores(
            *_likeness(found), None if overlap is None else (average(overlap), *bounds(overlap)), count, interval,
            average(error - marginal), over_heads(error - marginal)[1],
        )  # fmt: skip
    inverses, closer, negative = [], 0, 0
    for damping in DAMPINGS:
        by_layer = [space.inverse_agreements(damping) for space in spaces]
        inverse = _mean_over_sequences([found for found, _ in by_layer])
        coefficient = torch.stack([c.median(0).values for _, c in by_layer])
        alone = inverse[fisher.IDENTITY].best_scale_error
        of_inverse = {}
        for name, found in inverse.items():
            count, interval = over_heads(found.best_scale_error - alone)
            fitted = average(coefficient) if name == fisher.FITTED else None
            gap = average(found.best_scale_error - alone)
            of_inverse[name] = OfInverse(*_likeness(found), fitted, gap, count, interval)
        inverses.append(Inverse(damping, of_inverse))
        if damping == CLAIMED_DAMPING:
            closer = int((inverse[fisher.IDENTITY_AND_PATTERN].best_scale_error < alone).sum())
            negative = int((coefficient < 0).sum())
    layers = list(patterns)
    spectra = [(values / values.mean(-1, keepdim=True)).nanmean((0, 1)) for values in eigenvalues]
    return ScoreSpace(
        tuple(layers), marginal.numel(), length, approximations,
        int((agreements[fisher.KEY_GRAM].best_scale_error < marginal).sum()),
        {name: _rows(agreements[name].cosine) for name in (fisher.KEY_GRAM, fisher.MARGINAL)},
        tuple(inverses), closer, negative,
        {layers[i]: tuple(spectra[i].tolist()) for i in sorted({0, len(layers) // 2, len(layers) - 1})},
    )  # fmt: skip


def _mean_over_sequences(layers: Sequence[Agreements]) -> dict[str, Agreement]:
    """Return means [layers, heads] of tensors [sequences, heads]."""
    found = {}
    for name in layers[0]:
        cosine, error = (
            torch.stack([getattr(layer[name], part).nanmean(0) for layer in layers]) for part in ("cosine", "error")
        )
        overlaps = [layer[name].overlap for layer in layers]
        means = [overlap.nanmean(0) for overlap in overlaps if overlap is not None]
        found[name] = Agreement(cosine, error, torch.stack(means) if means else None)
    return found


def _measure_true(
    subject: Subject, settings: AnalyzeSettings, rows: Mapping[Place, QueryRows], products: Sequence[Products],
    advance: Advance,
) -> TrueFisher | str:  # fmt: skip
    """Measure F1 against the model's own Fisher, with jackknife intervals over sequences of means over heads."""
    tokens, places = subject.beginning(SEQUENCES), list(rows)
    if not subject.predicts_tokens:
        return "The model predicts no next token: there is no true Fisher to compare with."
    if len(tokens) < 3:
        return "The true Fisher needs at least 3 sequences."
    gradients = query_gradients(
        subject.model, tokens, places, rows[places[0]].covariances.shape[-1], draws=DRAWS, seed=settings.seed,
        batch_size=settings.text.batch_size, advance=advance,
    )  # fmt: skip
    by_head = []
    for (place, of_head), of_products in zip(rows.items(), products, strict=True):
        true = fisher.QueryGradients(gradients[place].gradients.double(), gradients[place].deltas.double())
        by_head.append(fisher.true_cosines(true, of_head, of_products))
    cosines = {name: torch.stack([of_head[name] for of_head in by_head]) for name in fisher.TRUE_APPROXIMANTS}
    approximations = {
        name: OfTrue(
            *_likeness(Agreement(values[:, 0], torch.full_like(values[:, 0], torch.nan))),
            jackknife(values.nanmean(0)),
        )
        for name, values in cosines.items()
    }  # fmt: skip
    layers = len({layer for layer, _ in places})
    return TrueFisher(len(tokens), approximations, _by_layer(cosines[fisher.EXACT][:, 0], layers))


def jackknife(values: Tensor) -> Interval:
    """Return the 95 % interval from an estimate and those without each sequence, [1 + B] (Tukey 1958)."""
    estimate, without = float(values[0]), values[1:]
    half = 1.96 * float(((len(without) - 1) * (without - without.mean()).square().mean()).sqrt())
    return estimate - half, estimate + half


def _measure_conditioning(
    subject: Subject, settings: AnalyzeSettings, query: Mapping[Place, QueryRows]
) -> dict[str, Preconditioned] | str:
    """Measure F4 in a few heads: preconditioners from every second sequence, the Fisher from the others."""
    tokens, places = subject.beginning(SEQUENCES), list(query)
    count = min(CONDITIONED_HEADS, len(places))
    chosen = [places[round(index)] for index in np.linspace(0, len(places) - 1, count)]
    head_dim = query[chosen[0]].covariances.shape[-1]
    rows = query_rows(
        subject.model, tokens, {layer: [head for other, head in chosen if other == layer] for layer, _ in chosen},
        max(4, COVARIANCE_NUMBERS // head_dim**2 // len(tokens)), seed=settings.seed + 1,
        batch_size=settings.text.batch_size,
    )  # fmt: skip
    found: dict[str, list[Conditioning]] = {name: [] for name in PRECONDITIONERS}
    for of_head in rows.values():
        made, new = (QueryRows(of_head.inputs[half::2], of_head.covariances[half::2]) for half in (0, 1))
        # A head whose patterns do not depend on W_Q has no Fisher.
        if not all(float(half.covariances.diagonal(dim1=-2, dim2=-1).sum()) > 0 for half in (made, new)):
            continue
        for name, preconditioner in preconditioners(made).items():
            found[name].append(conditioning(new, preconditioner, seed=settings.seed))
    if not found[fisher.IDENTITY]:
        return "F4: the attention-Fisher of W_Q is 0 in the heads that were looked at."
    largest = {name: torch.tensor([float(each.largest[0]) for each in kept]) for name, kept in found.items()}
    result = {}
    for name, kept in found.items():
        # The logarithm, because these are ratios over orders of magnitude; below 0 is better conditioned.
        ratios = (largest[name] / largest[fisher.IDENTITY]).log()
        spectrum = np.exp(np.mean([np.log(each.largest) for each in kept], axis=0))
        evenness = average(torch.tensor([each.evenness for each in kept]))
        result[name] = Preconditioned(
            average(largest[name]), *bounds(largest[name]), evenness, average(ratios), *over_heads(ratios),
            tuple(spectrum.tolist()),
        )  # fmt: skip
    return result


def _likeness(found: Agreement) -> tuple[float, float, float, float, float]:
    return (
        average(found.cosine), *bounds(found.cosine), average(found.error), average(found.best_scale_error),
    )  # fmt: skip


def over_heads(values: Tensor) -> tuple[int, Interval]:
    """Return the number of finite values, and the 95 % t interval of their mean."""
    finite = values[values.isfinite()].flatten().double().tolist()
    centre, half = t_interval(finite)
    return len(finite), (centre - half, centre + half)


def bounds(values: Tensor) -> Interval:
    """Return the least and the greatest finite value; nan without one."""
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)


def average(values: Tensor) -> float:
    """Return the mean of the values that are not nan."""
    return float(values.nanmean())


def _by_layer(values: Tensor, layers: int) -> Rows:
    return _rows(values.view(layers, -1))


def _rows(values: Tensor) -> Rows:
    return tuple(map(tuple, values.tolist()))


def top_count(length: int) -> int:
    """Return how many eigenvectors the overlap compares."""
    return max(1, min(TOP, length // 4))
