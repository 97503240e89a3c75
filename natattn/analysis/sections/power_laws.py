"""The sections that fit power laws: sizes of cascades (claim K2), and eigenvalues of the weights."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.avalanches import shape_collapse, threshold_scan
from natattn.analysis.patterns import row_entropies
from natattn.analysis.pictures import figures
from natattn.analysis.powerlaw import PowerLaw, analyse_power_law
from natattn.analysis.sections.cutoffs import CUTOFF_HEADINGS, cutoff_cells
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.spectra import weight_spectra
from natattn.analysis.subject import Subject
from natattn.report.section import Advance, Picture, Section, Table, interval_text, shown, table

Floats = NDArray[np.float64]
_CASCADE_HEADINGS = (
    "threshold", "cascades", "mean size", "branching, naive", "branching, robust", "shape exponent", "misfit of shapes",
)  # fmt: skip
_LAW_HEADINGS = ("τ", "95 % interval", "from", "p", "cutoff", "better rival")


def cascades_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Cascades of entropy along the tokens, at every threshold."""
    signals: list[Floats] = []
    for batch in subject.batches(settings.text.batch_size):
        entropies = row_entropies(subject.model, batch)  # [layers, sequences, H, L]
        # The first rows have few keys: their entropy rises with their position whatever the head does.
        skipped = min(16, batch.shape[1] // 4) if subject.is_causal else 0
        signals.extend(entropies[..., skipped:].transpose(0, 1).flatten(1, 2).numpy())
        advance(len(batch))
    rows, samples, laws, accepted = [], [], [], []
    for threshold, (found, branching) in threshold_scan(signals, settings.thresholds).items():
        sizes = found.sizes.astype(float)
        collapse = shape_collapse(found)
        law = _law(sizes, settings)
        fit = None if law is None else law.fit
        rows.append((
            threshold, len(sizes), float(sizes.mean()) if len(sizes) else None,
            None if branching is None else branching.naive, None if branching is None else branching.robust,
            None if collapse is None else collapse.exponent, None if collapse is None else collapse.error,
            *_law_cells(law), *cutoff_cells(sizes, law, replicas=settings.law_replicas, seed=settings.seed),
        ))  # fmt: skip
        samples.append((f"threshold {threshold:g}", sizes))
        laws.append(None if fit is None else (fit.exponent, fit.minimum, fit.tail / len(sizes)))
        if law is not None and law.p_value is not None and law.p_value >= 0.1:
            accepted.append(threshold)
    headings = (*_CASCADE_HEADINGS, *_LAW_HEADINGS, *CUTOFF_HEADINGS)
    findings = (
        f"A power law of the sizes is not refuted (p ≥ 0.1) at thresholds {', '.join(map(shown, accepted)) or 'none'}.",
        "An exponent of 3/2 is what critical branching would give (claim K2); it has to hold over thresholds. It would "
        "also give mean shapes that collapse on one curve (misfit near 0) under an exponent of 2.",
    )
    result = table(headings, rows)
    if not any(len(sizes) for _, sizes in samples):
        nothing = "No token is further from its head's mean than the smallest threshold: there are no cascades."
        return Section("cascades", "Cascades of entropy", (nothing,), (result,))
    picture = Picture(
        "cascades", "Sizes of cascades: points are the sample, lines the fitted power laws. A straight line over two "
        "decades would be needed to speak of scaling.", _counts(samples), figures.survival(samples, laws),
    )  # fmt: skip
    return Section("cascades", "Cascades of entropy", findings, (result,), (), (picture,))


def spectra_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Eigenvalues of the attention matrices."""
    found = weight_spectra(
        subject.model, replicas=settings.law_replicas, seed=settings.seed, processes=settings.processes, advance=advance
    )
    rows = [
        (
            s.layer,
            s.role,
            s.stable_rank,
            *_law_cells(s.law),
            None if s.shuffled.fit is None else s.shuffled.fit.exponent,
        )
        for s in found
    ]
    result = table(("layer", "matrix", "stable rank", *_LAW_HEADINGS, "τ of shuffled entries"), rows)
    kept = [s for s in found if s.law.p_value is not None and s.law.p_value >= 0.1]
    findings = (
        f"{len(kept)} of {len(found)} matrices have a tail that a power law does not miss (p ≥ 0.1).",
        "The exponent of the same entries in random order is beside it: a tail that this has too is not learned.",
    )
    last = [s for s in found if s.layer == max((each.layer for each in found), default=0)]
    samples = [
        (f"{s.role}, layer {s.layer}", s.eigenvalues[s.eigenvalues > 1e-3 * s.eigenvalues.max(initial=0.0)])
        for s in last
    ]
    laws = [
        None if s.law.fit is None else (s.law.fit.exponent, s.law.fit.minimum, s.law.fit.tail / max(1, len(values)))
        for s, (_, values) in zip(last, samples, strict=True)
    ]
    data = table(("matrix", "eigenvalue"), [(name, float(value)) for name, values in samples for value in values])
    caption = "Eigenvalues of W Wᵀ in the last layer, those above a thousandth of the largest, with their power laws."
    picture = Picture("spectra", caption, data, figures.survival(samples, laws))
    return Section("spectra", "Spectra of the weights", findings, (result,), (), (picture,))


def _law(values: Floats, settings: AnalyzeSettings) -> PowerLaw | None:
    if not len(values):
        return None
    return analyse_power_law(
        values, discrete=True, replicas=settings.law_replicas, seed=settings.seed, processes=settings.processes
    )


def _law_cells(law: PowerLaw | None) -> tuple[str | float | None, ...]:
    """Under ``_LAW_HEADINGS``."""
    if law is None or law.fit is None:
        return (None,) * len(_LAW_HEADINGS)
    better = [name for name, rival in law.rivals.items() if rival.log_ratio < 0 and rival.p_value < 0.05]
    interval = None if law.interval is None else interval_text(*law.interval)
    return law.fit.exponent, interval, law.fit.minimum, law.p_value, law.cutoff, ", ".join(better) or "none"


def _counts(samples: Sequence[tuple[str, Floats]]) -> Table:
    """How often each size occurs."""
    found = [(label, *np.unique(values, return_counts=True)) for label, values in samples]
    return table(("sample", "size", "cascades"), [
        (label, float(size), int(count)) for label, sizes, counts in found
        for size, count in zip(sizes, counts, strict=True)
    ])  # fmt: skip
