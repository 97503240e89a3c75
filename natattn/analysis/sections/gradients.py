"""The section about the gradient noise scale: what it is by role of parameter, and what batch sizes it suggests."""

from typing import Any

import numpy as np

from natattn.analysis.gradient_noise import ALL, NoiseScale, gradient_moments, noise_scale
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.errors import UserError
from natattn.report import figures
from natattn.report.section import Advance, Cell, Picture, Section, interval_text, shown, table


def gradients_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """The gradient noise scale, overall and by role, and the batch sizes that it suggests.

    Raises: UserError for a model that does not predict the next token.
    """
    if not subject.predicts_tokens:
        raise UserError(
            f"sections=[gradients]: needs a causal language model, which {type(subject.model).__name__} is not"
        )
    try:
        moments = gradient_moments(subject.model, subject.tokens, advance=advance)
    except ValueError as error:  # roles of a layout that is not known
        return Section("gradients", "Gradient noise", (f"Nothing was measured: {error}.",))
    sequences, length = subject.tokens.shape
    found = {name: noise_scale(of_role) for name, of_role in moments.items()}
    rows = [_row(name, scale, sequences, length - 1) for name, scale in found.items()]
    headings = (
        "parameters",
        "noise scale, sequences",
        "95 % interval",
        "in predicted tokens",
        "|G|²",
        "tr Σ",
        "told from 0",
    )
    result = table(headings, rows)
    findings = (*_of_all(found[ALL], sequences, length - 1), *_of_roles(found))
    pictures: tuple[Picture, ...] = ()
    if any(scale.scale is not None for scale in found.values()):
        caption = (
            "Gradient noise scale by role of parameter, with 95 % intervals where they are known. Embeddings that are "
            "tied to the output count as embedding. Roles without a bar: not resolved."
        )
        pictures = (Picture("gradients", caption, result, _bars(found)),)
    return Section("gradients", "Gradient noise", findings, (result,), (), pictures)


def _row(name: str, found: NoiseScale, sequences: int, predictions: int) -> tuple[Cell, ...]:
    interval = None if found.interval is None else interval_text(*found.interval)
    tokens = None if found.scale is None else found.scale * predictions
    told = f"not resolved with {sequences} sequences" if found.scale is None else "yes"
    return name, found.scale, interval, tokens, found.squared_norm, found.trace, told


def _of_all(found: NoiseScale, sequences: int, predictions: int) -> tuple[str, ...]:
    if found.scale is None:
        return (
            f"The noise scale over all parameters is not resolved with {sequences} sequences: their mean gradient is "
            "no larger than noise alone would make it. More sequences (text.sequences) may resolve it.",
        )
    interval = "its interval is not resolved" if found.interval is None else f"95 % {interval_text(*found.interval)}"
    return (
        f"The gradient noise scale tr Σ / |G|² over all parameters is {shown(found.scale)} sequences ({interval}), "
        f"{shown(found.scale * predictions)} predicted tokens; from {sequences} sequences of the validation split.",
        f"Batches well below it (under {shown(found.scale / 10)} sequences) gain nearly linearly in steps from being "
        f"larger; at it a run takes about twice the fewest steps and twice the fewest sequences; well above it (over "
        f"{shown(found.scale * 10)}) larger batches gain little. This holds for plain gradients, at these weights.",
    )


def _of_roles(found: dict[str, NoiseScale]) -> tuple[str, ...]:
    scales = {name: each.scale for name, each in found.items() if name != ALL and each.scale is not None}
    unresolved = [name for name, each in found.items() if name != ALL and each.scale is None]
    findings = []
    if len(scales) > 1:
        least, most = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
        findings.append(
            f"By role it is smallest for {least} ({shown(scales[least])} sequences) and largest for {most} "
            f"({shown(scales[most])})."
        )
    if unresolved:
        findings.append(f"Not resolved by themselves: {', '.join(unresolved)}.")
    return tuple(findings)


def _bars(found: dict[str, NoiseScale]) -> bytes:
    """A horizontal bar for all parameters and each role, on a logarithmic axis."""
    names = list(found)
    known = {name: (each.scale, each.interval or (each.scale,) * 2) for name, each in found.items() if each.scale}
    ends = [end for _, interval in known.values() for end in interval]

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        # Bars on a logarithmic axis have no zero to begin at: they begin at a power of ten below all that is shown.
        first = 10.0 ** np.floor(np.log10(min(ends)) - 0.3)
        for name, (scale, (low, high)) in known.items():
            panel.barh(
                names.index(name), scale - first, left=first, height=0.6, xerr=[[scale - low], [high - scale]],
                color=figures.COLOURS[0] if name == ALL else figures.COLOURS[3],
                error_kw={"ecolor": "#333333", "elinewidth": 1.0, "capsize": 2.5},
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set(xlabel="gradient noise scale, sequences", xlim=(first, max(ends) * 1.5))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_yticks(range(len(names)), names)
        panel.invert_yaxis()
        panel.grid(False, axis="y")

    return figures.drawn(draw, (5.6, 0.9 + 0.32 * len(names)))
