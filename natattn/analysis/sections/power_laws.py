"""The sections that fit power laws: sizes of cascades (claim K2), and eigenvalues of the weights."""

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.powerlaw import PowerLaw
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.spectra import weight_spectra
from natattn.analysis.subject import Subject
from natattn.report import figures
from natattn.report.section import Advance, Picture, Section, interval_text, table

Floats = NDArray[np.float64]
_LAW_HEADINGS = ("τ", "95 % interval", "from", "p", "cutoff", "better rival")


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


def _law_cells(law: PowerLaw | None) -> tuple[str | float | None, ...]:
    """Under ``_LAW_HEADINGS``."""
    if law is None or law.fit is None:
        return (None,) * len(_LAW_HEADINGS)
    better = [name for name, rival in law.rivals.items() if rival.log_ratio < 0 and rival.p_value < 0.05]
    interval = None if law.interval is None else interval_text(*law.interval)
    return law.fit.exponent, interval, law.fit.minimum, law.p_value, law.cutoff, ", ".join(better) or "none"
