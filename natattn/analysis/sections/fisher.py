"""The section about Fisher information: approximations against the exact attention-Fisher and the model's own."""

import numpy as np
import torch

from natattn.analysis.fisher_capture import query_rows
from natattn.analysis.pictures import charts
from natattn.analysis.sections.fisher_parts import Part, ScoreSpace, average, bounds
from natattn.analysis.sections.fisher_query import ROWS, SEQUENCES, QuerySpace, conditioning_part, true_part
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.attention.layers import attention_layers
from natattn.report.section import Advance, Picture, Section, table

LAYERS = 6  # whose heads are looked at in parameter space, evenly spread


def fisher_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Errors of what stands for the Fisher (F1) and its inverse (F3), and what preconditioning does to it (F4)."""
    score = ScoreSpace.of(subject)
    parts = [score.part()]
    tokens = subject.beginning(SEQUENCES)
    advance(len(tokens))
    layers = [found.layer for found in attention_layers(subject.model)]
    spread = sorted({layers[round(place)] for place in np.linspace(0, len(layers) - 1, min(LAYERS, len(layers)))})
    rows = query_rows(
        subject.model,
        tokens,
        {layer: range(score.heads) for layer in spread},
        max(4, ROWS // len(tokens)),
        seed=settings.seed,
        batch_size=settings.text.batch_size,
    )
    advance(len(tokens))
    if rows:
        query = QuerySpace.of(rows)
        parts += [query.part(len(layers)), true_part(subject, settings, query, advance)]
        parts.append(conditioning_part(subject, settings, query))
    else:
        finding = (
            "The queries of this model are not W_Q x + b as they enter the softmax (rotary embedding, a norm, or a "
            "projection of unknown name): the parameter space (F1, F4) is left out."
        )
        parts.append(Part((finding,)))
    findings, tables, maps = (
        tuple(item for part in parts for item in getattr(part, name)) for name in ("findings", "tables", "maps")
    )
    pictures = (_error_picture(parts), _spectrum_picture(parts))
    return Section("fisher", "Fisher information", findings, tables, maps, pictures)


def _error_picture(parts: list[Part]) -> Picture:
    panels = [panel for part in parts for panel in part.bars]
    data = [
        (title, name, average(torch.from_numpy(sample)), *bounds(torch.from_numpy(sample)))
        for title, samples in panels
        for name, sample in samples
    ]
    caption = (
        "Relative Frobenius error at the best scale: 0 is exact, 1 is no likeness. Bars are means over heads, whiskers "
        "go from the best head to the worst."
    )
    numbers = table(("space", "approximation", "mean", "least", "greatest"), data)
    return Picture("fisher_errors", caption, numbers, charts.bars(panels, x_label="relative error at the best scale"))


def _spectrum_picture(parts: list[Part]) -> Picture:
    label = "eigenvalue / mean eigenvalue"
    panels = [(title, label, lines) for part in parts for title, lines in part.lines]
    data = [
        (title, name, rank, float(value))
        for title, _, lines in panels
        for name, values in lines
        for rank, value in enumerate(values, start=1)
    ]
    caption = (
        "Eigenvalues of the mean Fisher in units of their mean: flat at 1 is perfectly conditioned. In score space "
        "means over heads and sequences; of W_Q the largest ones, geometric means over some heads."
    )
    picture = charts.lines_loglog(panels, x_label="rank of the eigenvalue", floor=1e-6)
    return Picture("fisher_spectra", caption, table(("space", "curve", "rank", label), data), picture)
