"""The parts of the section about Fisher information, and the first: score space, F1 and F3."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natattn.analysis import fisher_errors as fisher
from natattn.analysis.fisher_errors import Agreement
from natattn.analysis.patterns import attention_patterns
from natattn.analysis.subject import Subject
from natattn.report.section import HeadMap, Table, head_map, interval_text, shown, table
from natattn.statistics.paired import t_interval

Floats = NDArray[np.float64]
Curves = list[tuple[str, Floats]]  # names and numbers
Found = dict[str, Agreement]  # by approximation; tensors [layers, heads], or [heads of all layers]

SCORE_SEQUENCES = 4
TOP = 8  # eigenvectors
DAMPINGS = (0.01, 0.1, 1.0)  # of F3, in units of the mean eigenvalue
CLAIMED_DAMPING = 0.1
GOOD, POOR = 0.1, 0.5  # errors at the best scale
MEASURES = ("cosine", "least", "greatest", "error as it is", "error at best scale")
HEAD_INTERVAL = ("heads", "low", "high")  # 95 % t interval over heads of the column before


@dataclass(frozen=True, eq=False)
class Part:
    """What one space adds to the section. ``bars`` are errors of heads, ``lines`` spectra, both by title of a panel."""

    findings: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    maps: tuple[HeadMap, ...] = ()
    bars: tuple[tuple[str, Curves], ...] = ()
    lines: tuple[tuple[str, Curves], ...] = ()


@dataclass(frozen=True, eq=False)
class ScoreSpace:
    """Of patterns, means over sequences.

    Attributes:
        layers: their indices.
        length: L.
        found: F1, tensors [layers, heads].
        inverse, coefficient: F3 and the best c (a median over sequences), by damping, [layers, heads].
        spectra: eigenvalues of F in units of their mean, in falling order, mean over heads too, [layers, L].
    """

    layers: list[int]
    length: int
    found: Found
    inverse: dict[float, Found]
    coefficient: dict[float, Tensor]
    spectra: Tensor

    @classmethod
    def of(cls, subject: Subject) -> "ScoreSpace":
        """From the first sequences."""
        tokens = subject.beginning(SCORE_SEQUENCES)
        patterns, length = attention_patterns(subject.model, tokens), tokens.shape[1]
        spaces = [fisher.ScoreFisher(pattern.double()) for pattern in patterns.values()]
        inverse = {damping: [space.inverse_agreements(damping) for space in spaces] for damping in DAMPINGS}
        values = [space.eigen[0].flip(-1) for space in spaces]
        found = _stacked([space.agreements(_top(length)) for space in spaces])
        identity = torch.stack([_cosine_of_identity(value) for value in values])
        found[fisher.IDENTITY] = Agreement(identity, torch.full_like(identity, torch.nan))
        return cls(
            list(patterns),
            length,
            found,
            {damping: _stacked([found for found, _ in each]) for damping, each in inverse.items()},
            {damping: torch.stack([c.median(0).values for _, c in each]) for damping, each in inverse.items()},
            torch.stack([(value / value.mean(-1, keepdim=True)).nanmean((0, 1)) for value in values]),
        )

    @property
    def heads(self) -> int:
        """Of a layer."""
        return self.found[fisher.KEY_GRAM].cosine.shape[1]

    def part(self) -> Part:
        """F1 in score space, and F3."""
        marginal = self.found[fisher.MARGINAL]
        rows = [
            (
                *cells(name, found), average(found.overlap), *over_heads(found.best_scale_error),
                _mean_gap(found, marginal), *over_heads(found.best_scale_error - marginal.best_scale_error)[1:],
            )
            for name, found in self.found.items()
        ]  # fmt: skip
        inverse_rows = [
            (
                damping, *cells(name, found), average(self.coefficient[damping]) if name == fisher.FITTED else None,
                _mean_gap(found, by_name[fisher.IDENTITY]),
                *over_heads(found.best_scale_error - by_name[fisher.IDENTITY].best_scale_error),
            )
            for damping, by_name in self.inverse.items()
            for name, found in by_name.items()
        ]  # fmt: skip
        headings = (
            "in score space", *MEASURES, f"overlap of top {_top(self.length)}", *HEAD_INTERVAL, "gap to diag(mean a)",
            "low of the gap", "high of the gap",
        )  # fmt: skip
        inverse_headings = ("λ", "of the inverse", *MEASURES, "mean c", "gap to the identity", *HEAD_INTERVAL)
        maps = [("cosine of A Aᵀ over the keys", fisher.KEY_GRAM), ("cosine of diag(mean a)", fisher.MARGINAL)]
        chosen = sorted({0, len(self.layers) // 2, len(self.layers) - 1})
        return Part(
            (*self._about_the_fisher(), self._about_its_inverse()),
            (table(headings, rows), table(inverse_headings, inverse_rows)),
            tuple(head_map(title, self.layers, self.found[name].cosine.tolist()) for title, name in maps),
            (
                ("Score space (F1)", errors_of(self.found)),
                (f"Inverse, λ = {CLAIMED_DAMPING:g} (F3)", errors_of(self.inverse[CLAIMED_DAMPING])),
            ),
            (("Score space", [(f"layer {self.layers[place]}", self.spectra[place].numpy()) for place in chosen]),),
        )

    def _about_the_fisher(self) -> tuple[str, ...]:
        claimed, printed, marginal = (
            self.found[name] for name in (fisher.KEY_GRAM, fisher.QUERY_GRAM, fisher.MARGINAL)
        )
        closer = int((claimed.best_scale_error < marginal.best_scale_error).sum())
        k = _top(self.length)
        return (
            f"F1, score space: A Aᵀ over the keys is {verdict(claimed)} approximation of the mean Fisher: its error at "
            f"the best scale is {spread(claimed.best_scale_error)} of the Fisher's norm, its cosine "
            f"{spread(claimed.cosine)}, means and range over heads. As printed, queries × queries, it is "
            f"{verdict(printed)} one: {spread(printed.best_scale_error)}.",
            f"diag(mean a) alone is {verdict(marginal)} approximation: {spread(marginal.best_scale_error)}; A Aᵀ over "
            f"the keys is closer in {closer} of {marginal.cosine.numel()} heads. Exactly, F = diag(mean a) − AᵀA/L.",
            f"Of the space of the {k} largest eigenvalues A Aᵀ over the keys has {spread(claimed.overlap)}, "
            f"diag(mean a) {spread(marginal.overlap)}, a random space {shown(k / self.length)}.",
        )

    def _about_its_inverse(self) -> str:
        found = self.inverse[CLAIMED_DAMPING]
        claimed, alone, fitted = (
            found[name].best_scale_error for name in (fisher.IDENTITY_AND_PATTERN, fisher.IDENTITY, fisher.FITTED)
        )
        negative = int((self.coefficient[CLAIMED_DAMPING] < 0).sum())
        return (
            f"F3: I + A is {verdict(found[fisher.IDENTITY_AND_PATTERN])} approximation of (F + λI)⁻¹ at λ = "
            f"{CLAIMED_DAMPING:g} mean eigenvalues: error {spread(claimed)} at the best scale, that of I alone "
            f"{spread(alone)}; A makes it smaller in {int((claimed < alone).sum())} of {alone.numel()} heads. The best "
            f"coefficient of A gives {spread(fitted)}; it is negative in {negative} of {alone.numel()} heads."
        )


def _stacked(layers: list[Found]) -> Found:
    """Means over sequences [layers, heads] of tensors [sequences, heads]."""

    def mean(tensors: Iterable[Tensor | None]) -> Tensor | None:
        means = [tensor.nanmean(0) for tensor in tensors if tensor is not None]
        return torch.stack(means) if means else None

    found = {}
    for name in layers[0]:
        cosine, error = (
            torch.stack([tensor.nanmean(0) for tensor in tensors])
            for tensors in zip(*((layer[name].cosine, layer[name].error) for layer in layers), strict=True)
        )
        found[name] = Agreement(cosine, error, mean(layer[name].overlap for layer in layers))
    return found


def _cosine_of_identity(values: Tensor) -> Tensor:
    """⟨I, F⟩ / (‖I‖ ‖F‖) = Σλ / √(L Σλ²) of eigenvalues [sequences, heads, L], mean over sequences."""
    norm = (values.shape[-1] * values.square().sum(-1)).sqrt()
    return (values.sum(-1) / norm).nanmean(0)


def _mean_gap(found: Agreement, other: Agreement) -> float:
    """Mean over heads of what one's error at the best scale is above the other's."""
    return average(found.best_scale_error - other.best_scale_error)


def over_heads(values: Tensor) -> tuple[int, float, float]:
    """Under ``HEAD_INTERVAL``: of this one model; values that are no numbers are left out."""
    finite = values[values.isfinite()].flatten().double().tolist()
    centre, half = t_interval(finite)
    return len(finite), centre - half, centre + half


def _top(length: int) -> int:
    return max(1, min(TOP, length // 4))


def errors_of(found: Found) -> Curves:
    """Errors at the best scale, for the bars."""
    return [(name, value.best_scale_error.flatten().double().numpy()) for name, value in found.items()]


def cells(name: str, found: Agreement) -> tuple[str, float, float, float, float, float]:
    """A name, and what is under ``MEASURES``."""
    low, high = bounds(found.cosine)
    return name, average(found.cosine), low, high, average(found.error), average(found.best_scale_error)


def verdict(found: Agreement) -> str:
    """In a word, with its article, from the mean error at the best scale."""
    error = average(found.best_scale_error)
    return "a good" if error < GOOD else "a poor" if error > POOR else "a rough"


def spread(values: Tensor | None) -> str:
    """mean [least, greatest]."""
    return "—" if values is None else f"{shown(average(values))} {interval_text(*bounds(values))}"


def bounds(values: Tensor) -> tuple[float, float]:
    """Least and greatest of the finite values."""
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if len(finite) else (torch.nan, torch.nan)


def average(values: Tensor | None) -> float:
    """Mean of the values that are numbers."""
    return torch.nan if values is None else float(values.nanmean())
