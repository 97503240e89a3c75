"""W_Q's part of the section about Fisher information: F1 against the attention-Fisher and the model's own, and F4."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from natattn.analysis import fisher_errors as fisher
from natattn.analysis.fisher_capture import Place, query_gradients, query_rows
from natattn.analysis.fisher_conditioning import DAMPING, PRECONDITIONERS, Conditioning, conditioning, preconditioners
from natattn.analysis.fisher_errors import Agreement, QueryRows
from natattn.analysis.sections.fisher_parts import (
    HEAD_INTERVAL,
    MEASURES,
    Found,
    Part,
    average,
    bounds,
    cells,
    errors_of,
    over_heads,
    spread,
    verdict,
)
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.report.section import Advance, HeadMap, head_map, interval_text, shown, table

SEQUENCES = 32
ROWS = 512  # of a head, over the sequences
DRAWS = 4  # of labels
CONDITIONED_HEADS = 4
COVARIANCE_NUMBERS = 2**23  # of a head's rows for the spectra: 32 MB in float32


@dataclass(frozen=True, eq=False)
class QuerySpace:
    """F(W_Q) by head; everything in the order of ``rows``, layer by layer."""

    rows: Mapping[Place, QueryRows]
    products: list[fisher.Products]
    found: Found

    @classmethod
    def of(cls, rows: Mapping[Place, QueryRows]) -> "QuerySpace":
        """From rows that were sampled."""
        places = sorted(rows)
        rows = {place: _double(rows[place]) for place in places}
        products = [fisher.query_products(of_head) for of_head in rows.values()]
        each = [of_head.agreements() for of_head in products]
        found = {
            name: Agreement(torch.stack([a[name].cosine for a in each]), torch.stack([a[name].error for a in each]))
            for name in fisher.QUERY_APPROXIMANTS
        }
        return cls(rows, products, found)

    @property
    def places(self) -> list[Place]:
        """Layers and heads."""
        return list(self.rows)

    @property
    def head_dim(self) -> int:
        """D."""
        return next(iter(self.rows.values())).covariances.shape[-1]

    def map(self, name: str, values: Tensor) -> HeadMap:
        """Of one value for each place."""
        layers = sorted({layer for layer, _ in self.places})
        return head_map(name, layers, values.view(len(layers), -1).tolist())

    def part(self, layer_count: int) -> Part:
        """F1 in parameter space, against the attention-Fisher."""
        product, diagonal, identity = (
            self.found[name] for name in (fisher.KRONECKER, fisher.DIAGONAL, fisher.IDENTITY)
        )
        layers = len({layer for layer, _ in self.places})
        finding = (
            f"F1, W_Q ({len(self.places)} heads, {layers} of {layer_count} layers, about {ROWS} query rows each): the "
            f"Kronecker product S ⊗ A is {verdict(product)} approximation of the exact attention-Fisher: error "
            f"{spread(product.best_scale_error)} at the best scale, cosine {spread(product.cosine)}. The diagonal has "
            f"a cosine of {spread(diagonal.cosine)}, the identity {spread(identity.cosine)}. W_K is left out."
        )
        rows = [cells(name, found) for name, found in self.found.items()]
        return Part(
            (finding,),
            (table(("of the attention-Fisher of W_Q", *MEASURES), rows),),
            (self.map("cosine of the Kronecker product", product.cosine),),
            (("W_Q, exact attention-Fisher (F1)", errors_of(self.found)),),
        )


def true_part(subject: Subject, settings: AnalyzeSettings, query: QuerySpace, advance: Advance) -> Part:
    """F1 against the model's own Fisher; intervals by the jackknife over sequences, of means over heads."""
    tokens = subject.beginning(SEQUENCES)
    if not subject.predicts_tokens:
        return Part(("The model predicts no next token: there is no true Fisher to compare with.",))
    if len(tokens) < 3:
        return Part(("The true Fisher needs at least 3 sequences.",))
    gradients = query_gradients(
        subject.model, tokens, query.places, query.head_dim, draws=DRAWS, seed=settings.seed,
        batch_size=settings.text.batch_size, advance=advance,
    )  # fmt: skip
    each = []
    for (place, rows), products in zip(query.rows.items(), query.products, strict=True):
        true = fisher.QueryGradients(gradients[place].gradients.double(), gradients[place].deltas.double())
        each.append(fisher.true_cosines(true, rows, products))
    cosines = {name: torch.stack([of_head[name] for of_head in each]) for name in fisher.TRUE_APPROXIMANTS}
    found = {
        name: Agreement(values[:, 0], torch.full_like(values[:, 0], torch.nan)) for name, values in cosines.items()
    }
    intervals = {name: interval_text(*jackknife(values.nanmean(0))) for name, values in cosines.items()}
    named = {name: f"{shown(average(found[name].cosine))} {intervals[name]}" for name in cosines}
    finding = (
        f"F1, the model's true Fisher of W_Q, from labels drawn from its predictions ({len(tokens)} sequences, {DRAWS} "
        f"draws): the exact attention-Fisher has a cosine of {named[fisher.EXACT]} with it, the Kronecker product "
        f"{named[fisher.KRONECKER]}, the diagonal {named[fisher.DIAGONAL]}, the identity {named[fisher.IDENTITY]}; "
        f"K-FAC's own product {named[fisher.KFAC]}, its own diagonal {named[fisher.OWN_DIAGONAL]}: means over heads, "
        "95 % intervals over sequences."
    )
    rows_of_table = [
        (*cells(name, value)[:4], intervals[name], average(value.best_scale_error)) for name, value in found.items()
    ]
    headings = ("of the true Fisher of W_Q", *MEASURES[:3], "95 % interval of the mean", MEASURES[-1])
    return Part(
        (finding,),
        (table(headings, rows_of_table),),
        (query.map("cosine of the attention-Fisher with the true", found[fisher.EXACT].cosine),),
        (("W_Q, the model's true Fisher (F1)", errors_of(found)),),
    )


def jackknife(values: Tensor) -> tuple[float, float]:
    """95 % interval from an estimate and those without each sequence, [1 + B] (Tukey 1958)."""
    estimate, without = float(values[0]), values[1:]
    half = 1.96 * float(((len(without) - 1) * (without - without.mean()).square().mean()).sqrt())
    return estimate - half, estimate + half


def _conditionings(subject: Subject, settings: AnalyzeSettings, query: QuerySpace) -> dict[str, list[Conditioning]]:
    """By preconditioner, of a few heads whose patterns depend on W_Q: made from half of the sequences, for the rest."""
    tokens = subject.beginning(SEQUENCES)
    count = min(CONDITIONED_HEADS, len(query.places))
    chosen = [query.places[round(place)] for place in np.linspace(0, len(query.places) - 1, count)]
    rows = query_rows(
        subject.model,
        tokens,
        {layer: [head for other, head in chosen if other == layer] for layer, _ in chosen},
        max(4, COVARIANCE_NUMBERS // query.head_dim**2 // len(tokens)),
        seed=settings.seed + 1,
        batch_size=settings.text.batch_size,
    )
    found: dict[str, list[Conditioning]] = {name: [] for name in PRECONDITIONERS}
    for of_head in rows.values():
        known, new = (QueryRows(of_head.inputs[half::2], of_head.covariances[half::2]) for half in (0, 1))
        if not all(float(half.covariances.diagonal(dim1=-2, dim2=-1).sum()) > 0 for half in (known, new)):
            continue
        for name, preconditioner in preconditioners(known).items():
            found[name].append(conditioning(new, preconditioner, seed=settings.seed))
    return found


def conditioning_part(subject: Subject, settings: AnalyzeSettings, query: QuerySpace) -> Part:
    """F4: preconditioners from every second sequence, the Fisher from the others; of a few heads."""
    found = _conditionings(subject, settings, query)
    if not found[fisher.IDENTITY]:
        return Part(("F4: the attention-Fisher of W_Q is 0 in the heads that were looked at.",))
    largest = {name: torch.tensor([float(each.largest[0]) for each in kept]) for name, kept in found.items()}
    evenness = {name: torch.tensor([each.evenness for each in kept]) for name, kept in found.items()}
    finding = (
        f"F4, {len(evenness[fisher.IDENTITY])} heads: the largest eigenvalue of the damped attention-Fisher of W_Q is "
        f"{spread(largest[fisher.IDENTITY])} times the mean one, after the Kronecker product "
        f"{spread(largest[fisher.KRONECKER])}, after its input side alone {spread(largest[fisher.INPUT])}, after the "
        f"diagonal {spread(largest[fisher.DIAGONAL])}. "
        f"Preconditioners are from other sequences, their damping is {DAMPING:g}."
    )
    # Of logarithms, as these are ratios over orders of magnitude: below 0 is better conditioned.
    ratios = {name: (largest[name] / largest[fisher.IDENTITY]).log() for name in PRECONDITIONERS}
    lines = [
        (
            name, average(largest[name]), *bounds(largest[name]), average(evenness[name]), average(ratios[name]),
            *over_heads(ratios[name]),
        )
        for name in PRECONDITIONERS
    ]  # fmt: skip
    headings = ("preconditioner", "λ_max / mean", "least", "greatest", "evenness: mean² / mean square",
                "log ratio to the identity", *HEAD_INTERVAL)  # fmt: skip
    curves = [
        ("none" if name == fisher.IDENTITY else name, np.exp(np.mean([np.log(each.largest) for each in kept], axis=0)))
        for name, kept in found.items()
    ]
    return Part((finding,), (table(headings, lines),), lines=(("W_Q, damped, by preconditioner", curves),))


def _double(rows: QueryRows) -> QueryRows:
    return QueryRows(rows.inputs.double(), rows.covariances.double())
