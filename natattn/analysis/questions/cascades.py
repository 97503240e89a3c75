"""Claim K2, P(s) ∝ s^(−τ) exp(−s/s_c) with τ ≈ 3/2, over cascades of attention entropy.

The papers speak of avalanches without defining them. Here they are those of neuronal recordings (Beggs and Plenz 2003):

- a unit is a head of a layer, its signal the entropy of its rows, and time the token;
- a unit is active if its signal is more than ``threshold`` standard deviations from its mean over time;
- the activity at a time is the number of active units. A cascade is a maximal run of times with any activity; its size
  is the activity summed over it, its duration the number of times.

Everything depends on the threshold, so the result is a row for each of them. τ is that of the law with a cutoff, by
maximum likelihood on the tail of the fit. The claim holds, by our definition, if τ is within ``TOLERANCE`` of 3/2 at
every threshold. The bootstrap p-value is that of the plain power law. Log-likelihood ratios are the plain power law's
minus a rival's. The branching ratio would be 1 at criticality.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from natattn.analysis.frame import Question
from natattn.analysis.patterns import row_entropies
from natattn.analysis.powerlaw import PowerLaw, Rival, analyse_power_law, fit_cutoff
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject, reads_text
from natattn.analysis.verdicts import AnalysisResult, Group, Measured, Row, findings_of, groups, near, over_seeds
from natattn.report import figures
from natattn.report.section import Advance, Picture, Section, interval_text, shown, table
from natattn.report.table import Badge, Cell, Finding, StudyTable

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
MOST_LAGS = 20
LEAST_PAIRS = 3  # of activity now and later, for a slope
SHAPE_POINTS = 21  # at which mean shapes are compared
MOST_REPLICAS = 100  # of the law with a cutoff: each is a search in two parameters
CLAIMED = 1.5
TOLERANCE = 0.1
REFUTED_BELOW = 0.1  # p-value of a plain power law


@dataclass(frozen=True)
class Law:
    """A power law of the sizes of cascades, and its rivals.

    Attributes:
        exponent, interval: τ of the plain power law, with the 95 % percentile interval over resampled sizes.
        minimum: the least size that the law is fitted to.
        p_value: of the plain power law, by bootstrap; below 0.1 it is refuted.
        cutoff, cutoff_exponent, cutoff_interval: s_c and τ of s^(−τ) exp(−s/s_c), with the percentile interval of this
            τ; None if it was not fitted.
        rivals: by name; log-likelihood ratios are the power law's minus the rival's, below 0 the rival is closer.
        better_rivals: names of those that are significantly closer (p < 0.05).
    """

    exponent: float
    interval: tuple[float, float] | None
    minimum: float
    p_value: float | None
    cutoff: float | None
    cutoff_exponent: float | None
    cutoff_interval: tuple[float, float] | None
    rivals: dict[str, Rival]
    better_rivals: tuple[str, ...]


@dataclass(frozen=True)
class AtThreshold:
    """The cascades beyond one threshold.

    Attributes:
        threshold: in standard deviations of each head.
        cascades: number of cascades.
        mean_size: None without cascades.
        branching, robust_branching: see ``Branching``; None if the activity does not vary.
        shape_exponent, shape_misfit: see ``Collapse``; None if too few durations occur often enough.
        law: None if there are too few cascades for a fit.
        sizes: how often each size occurs, {size: cascades}.
    """

    threshold: float
    cascades: int
    mean_size: float | None
    branching: float | None
    robust_branching: float | None
    shape_exponent: float | None
    shape_misfit: float | None
    law: Law | None
    sizes: dict[int, int]


@dataclass(frozen=True)
class EntropyCascades:
    """The result for one model, by threshold."""

    thresholds: tuple[AtThreshold, ...]

    def at(self, threshold: float) -> AtThreshold | None:
        """Return the row of a threshold; None if it was not asked for."""
        return next((row for row in self.thresholds if row.threshold == threshold), None)


def measure(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> EntropyCascades:
    """Find cascades of entropy along the tokens at every threshold, and fit power laws to their sizes."""
    signals: list[Floats] = []
    for batch in subject.batches(settings.text.batch_size):
        entropies = row_entropies(subject.model, batch)  # [layers, sequences, H, L]
        # The first rows have few keys, so their entropy rises with their position in every head.
        skipped = min(16, batch.shape[1] // 4) if subject.is_causal else 0
        signals.extend(entropies[..., skipped:].transpose(0, 1).flatten(1, 2).numpy())
        advance(len(batch))
    rows = []
    for threshold in settings.thresholds:
        series = [activity(of_sequence, threshold) for of_sequence in signals]
        found, branching = cascades(series), branching_ratio(series)
        sizes, collapse = found.sizes.astype(float), shape_collapse(found)
        law = None
        if len(sizes):
            law = analyse_power_law(
                sizes, discrete=True, replicas=settings.law_replicas, seed=settings.seed, processes=settings.processes
            )
        rows.append(
            AtThreshold(
                float(threshold), len(sizes), float(sizes.mean()) if len(sizes) else None,
                None if branching is None else branching.naive, None if branching is None else branching.robust,
                None if collapse is None else collapse.exponent, None if collapse is None else collapse.error,
                None if law is None else _law(sizes, law, min(settings.law_replicas, MOST_REPLICAS), settings.seed),
                dict(sorted(Counter(found.sizes.tolist()).items())),
            )
        )  # fmt: skip
    return EntropyCascades(tuple(rows))


def _law(sizes: Floats, law: PowerLaw, replicas: int, seed: int) -> Law | None:
    """Return a fit with the interval of its τ with a cutoff; None if the law has no fit.

    The interval is over sizes drawn with replacement, above the lower bound of the plain law. A bound searched again in
    every sample would measure which part of the curve was fitted.
    """
    if law.fit is None:
        return None
    tail = sizes[sizes >= law.fit.minimum]
    exponents = []
    for index in range(replicas):
        drawn = np.random.default_rng((seed, index)).choice(tail, len(tail))
        if drawn.min() < drawn.max():
            exponents.append(fit_cutoff(drawn, law.fit, discrete=True)[1])
    interval = (float(np.quantile(exponents, 0.025)), float(np.quantile(exponents, 0.975))) if exponents else None
    better = tuple(name for name, rival in law.rivals.items() if rival.log_ratio < 0 and rival.p_value < 0.05)
    return Law(
        law.fit.exponent, law.interval, law.fit.minimum, law.p_value, law.cutoff, law.cutoff_exponent, interval,
        {name: law.rivals[name] for name in ("cutoff", "lognormal", "exponential") if name in law.rivals}, better,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cascades:
    """Cascades of one or more series of activity; ``shapes`` holds the activity over each cascade."""

    sizes: Counts
    durations: Counts
    shapes: tuple[Counts, ...]


@dataclass(frozen=True)
class Branching:
    """The expected number of successors of one active unit: below 1 activity dies out, at 1 it is critical.

    ``naive`` is the slope of A(t+1) on A(t), too low if some units are not observed. ``robust`` is fitted to the decay
    of the slopes with the lag and has no such bias (Wilting and Priesemann 2018). ``slopes`` are for lags 1, 2, ….
    """

    naive: float
    robust: float
    slopes: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Collapse:
    """Mean shapes on [0, 1] that fall on one curve when divided by duration^(exponent − 1).

    ``exponent`` is γ of mean size ∝ duration^γ. ``profiles`` [durations, points] are the mean shapes of ``durations``.
    ``error`` is the variance between rescaled profiles over the mean square of their mean: 0 for a perfect collapse.
    """

    exponent: float
    durations: Counts
    profiles: Floats
    error: float


def activity(signals: ArrayLike, threshold: float) -> Counts:
    """Return the number of active units at each time, [time].

    Args:
        signals: [units, time]; a unit with a constant signal is never active, and nan is not activity.
        threshold: in standard deviations of the unit's own signal.

    Raises: ValueError for another number of axes or a threshold that is not positive.
    """
    values = np.asarray(signals, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"signals: {values.ndim} axes; valid: [units, time]")
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: must be positive")
    known = np.isfinite(values)
    counts = np.maximum(known.sum(1, keepdims=True), 1)
    centred = np.where(known, values, 0.0)
    centred = np.where(known, centred - centred.sum(1, keepdims=True) / counts, 0.0)
    spread = np.sqrt((centred**2).sum(1, keepdims=True) / counts)
    # Rounding gives a constant signal a spread of about 1e-16 of its size.
    largest = np.abs(np.where(known, values, 0.0)).max(1, keepdims=True, initial=0.0)
    return np.asarray(((np.abs(centred) > threshold * spread) & (spread > 1e-12 * largest)).sum(0), dtype=np.int64)


def cascades(series: Iterable[ArrayLike]) -> Cascades:
    """Return the cascades in series of activity, without those that touch an end of their series.

    Such a cascade has an unknown size: counting it would distort the distribution at large sizes.
    """
    shapes = []
    for values in series:
        counts = np.asarray(values, dtype=np.int64)
        quiet = np.flatnonzero(counts == 0)
        shapes += [counts[start + 1 : stop] for start, stop in pairwise(quiet) if stop > start + 1]
    return Cascades(
        np.array([shape.sum() for shape in shapes], dtype=np.int64),
        np.array([len(shape) for shape in shapes], dtype=np.int64),
        tuple(shapes),
    )


def branching_ratio(series: Sequence[ArrayLike]) -> Branching | None:
    """Return the branching ratio of A(t+1) ~ ratio · A(t) + drive, from the pooled slopes r_k of A(t+k) on A(t).

    Under subsampling every slope shrinks by the same unknown factor b: r_k = b · ratio^k. The fit of b and ratio is by
    least squares in log r_k, weighted by r_k², over the lags before the first slope within its noise.

    Returns: None if the activity does not vary, or is too short for a lag.
    """
    known = [np.asarray(values, dtype=np.float64) for values in series]
    if sum(max(0, len(values) - 1) for values in known) < LEAST_PAIRS:
        return None
    level = sum(values.sum() for values in known) / sum(len(values) for values in known)
    centred = [values - level for values in known]
    if not any(values.any() for values in centred):
        return None
    slopes = []
    for lag in range(1, MOST_LAGS + 1):
        pairs = [(values[:-lag], values[lag:]) for values in centred if len(values) > lag]
        variance = sum(float(now @ now) for now, _ in pairs)
        count = sum(len(now) for now, _ in pairs)
        if variance <= 0 or count < LEAST_PAIRS:
            break
        slope = sum(float(now @ later) for now, later in pairs) / variance
        if slope < 2 / math.sqrt(count):  # the error of a slope between series without memory is 1/√count
            break
        slopes.append(slope)
    if not slopes:
        return Branching(0.0, 0.0, ())
    naive = slopes[0]
    if len(slopes) < 2:
        return Branching(naive, naive, tuple(slopes))
    lag_numbers, logs = np.arange(1, len(slopes) + 1), np.log(slopes)
    slope, _ = np.polyfit(lag_numbers, logs, 1, w=np.array(slopes))
    return Branching(naive, float(np.exp(slope)), tuple(slopes))


def shape_collapse(found: Cascades, *, least_count: int = 10, shortest: int = 3) -> Collapse | None:
    """Return the mean shapes of durations that occur often enough, and the exponent that makes them collapse.

    γ is the least-squares slope of log mean size on log duration, weighted by the number of cascades, over durations of
    ``shortest`` and more. Short ones are the most frequent and the furthest from scaling: critical branching has
    γ = 2, but a slope of 1.6 from a duration of 3 on.

    Returns: None with fewer than two such durations.
    """
    durations, counts = np.unique(found.durations, return_counts=True)
    chosen = durations[(counts >= least_count) & (durations >= shortest)]
    if len(chosen) < 2:
        return None
    weights = counts[np.isin(durations, chosen)]
    sizes = np.array([found.sizes[found.durations == duration].mean() for duration in chosen])
    exponent = float(np.polyfit(np.log(chosen), np.log(sizes), 1, w=np.sqrt(weights))[0])
    grid = np.linspace(0, 1, SHAPE_POINTS)
    profiles = np.stack([_mean_shape(found, int(duration), grid) for duration in chosen])
    rescaled = profiles / chosen[:, None] ** (exponent - 1)
    mean = rescaled.mean(0)
    error = float(((rescaled - mean) ** 2).mean() / max((mean**2).mean(), 1e-300))
    return Collapse(exponent, chosen.astype(np.int64), profiles, error)


def _mean_shape(found: Cascades, duration: int, grid: Floats) -> Floats:
    shapes = np.array([shape for shape in found.shapes if len(shape) == duration], dtype=np.float64)
    # A duration of n is n bins, whose middles are half a bin inside.
    middles = (np.arange(duration) + 0.5) / duration
    return np.asarray(np.interp(grid, middles, shapes.mean(0)))


def section(result: EntropyCascades) -> Section:
    """Show a row for each threshold, and the distributions of sizes with their laws."""
    accepted = [
        row.threshold for row in result.thresholds
        if row.law is not None and row.law.p_value is not None and row.law.p_value >= REFUTED_BELOW
    ]  # fmt: skip
    headings = (
        "threshold", "cascades", "mean size", "branching, naive", "branching, robust", "shape exponent",
        "misfit of shapes", "τ", "95 % interval", "from", "p", "cutoff", "better rival", "low", "high",
        "τ with a cutoff", "low with a cutoff", "high with a cutoff", "log ratio to a cutoff", "p of a cutoff",
        "log ratio to lognormal", "p of lognormal", "log ratio to exponential", "p of exponential",
    )  # fmt: skip
    rows = []
    for r in result.thresholds:
        law_cells: tuple[str | float | None, ...] = (None,) * 17
        if r.law is not None:
            low_high = r.law.interval or (None, None)
            law_cells = (
                r.law.exponent, None if r.law.interval is None else interval_text(*r.law.interval), r.law.minimum,
                r.law.p_value, r.law.cutoff, ", ".join(r.law.better_rivals) or "none", *low_high,
                r.law.cutoff_exponent, *(r.law.cutoff_interval or (None, None)),
                *(cell for name in ("cutoff", "lognormal", "exponential") for cell in _ratio(r.law, name)),
            )  # fmt: skip
        rows.append((r.threshold, r.cascades, r.mean_size, r.branching, r.robust_branching, r.shape_exponent,
                     r.shape_misfit, *law_cells))  # fmt: skip
    shown_table = table(headings, rows)
    if not any(row.cascades for row in result.thresholds):
        nothing = "No token is further from its head's mean than the smallest threshold: there are no cascades."
        return Section("cascades", "Cascades of entropy", (nothing,), (shown_table,))
    findings = (
        f"A power law of the sizes is not refuted (p ≥ 0.1) at thresholds {', '.join(map(shown, accepted)) or 'none'}.",
        "An exponent of 3/2 is what critical branching would give (claim K2); it has to hold over thresholds. It would "
        "also give mean shapes that collapse on one curve (misfit near 0) under an exponent of 2.",
    )
    samples = [
        (f"threshold {row.threshold:g}", np.array(list(Counter(row.sizes).elements()), dtype=np.float64))
        for row in result.thresholds
    ]
    laws = [
        None
        if row.law is None or not row.sizes
        else (row.law.exponent, row.law.minimum, float((sizes >= row.law.minimum).mean()))
        for row, (_, sizes) in zip(result.thresholds, samples, strict=True)
    ]
    data = table(
        ("sample", "size", "cascades"),
        [
            (label, float(size), count) for (label, _), row in zip(samples, result.thresholds, strict=True)
            for size, count in row.sizes.items()
        ],
    )  # fmt: skip
    picture = Picture(
        "cascades", "Sizes of cascades: points are the sample, lines the fitted power laws. A straight line over two "
        "decades would be needed to speak of scaling.", data, figures.survival(samples, laws),
    )  # fmt: skip
    return Section("cascades", "Cascades of entropy", findings, (shown_table,), (), (picture,))


def _ratio(law: Law, name: str) -> tuple[float | None, float | None]:
    rival = law.rivals.get(name)
    return (None, None) if rival is None else (rival.log_ratio, rival.p_value)


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Judge τ at every threshold of every kind of models."""
    asked = [
        (group, [result.at(threshold) for result in results], threshold)
        for group in groups(analyses, "cascades")
        for results in [group.results("cascades", EntropyCascades)]
        for threshold in sorted({row.threshold for result in results for row in result.thresholds})
    ]
    if not asked:
        return [], []
    findings = findings_of(study, [_row(*item) for item in asked], near(TOLERANCE))
    table_rows: list[tuple[Cell, ...]] = [
        (group.label, threshold, finding.estimate, Badge(finding.verdict), finding.count, *_cells(group, rows))
        for (group, rows, threshold), finding in zip(asked, findings, strict=True)
    ]
    caption = (
        "Cascades: tokens in a row whose entropy is further from their head's mean than the threshold, in its standard "
        f"deviations. Claimed: τ within {TOLERANCE:g} of 3/2 (our definition of ≈) at every threshold. The first τ is "
        "judged, Holm-adjusted over rows where it is over seeds; the columns after the count are means over seeds "
        "with 95 % t intervals, not adjusted. p: bootstrap, of the plain power law, below 0.1 it is refuted. Log "
        "ratios: of likelihoods, plain power law minus rival, below 0 the rival is nearer."
    )
    headings = (
        "models", "threshold", "τ", "verdict", "count", "cascades", "branching ratio", "τ of the plain power law",
        "τ with a cutoff", "p", "s_c", "log ratio to a cutoff", "p of a cutoff", "log ratio to lognormal",
        "log ratio to exponential",
    )  # fmt: skip
    runs = tuple(group.runs for group, *_ in asked)
    return findings, [StudyTable("cascades", "Cascades by threshold", caption, headings, tuple(table_rows), runs)]


def _row(group: Group, rows: Sequence[AtThreshold | None], threshold: float) -> Row:
    laws = [None if row is None else row.law for row in rows]
    notes = []
    if p_values := [law.p_value for law in laws if law is not None and law.p_value is not None]:
        below = sum(p < REFUTED_BELOW for p in p_values)
        notes.append(f"a plain power law is refuted (p < 0.1) in {below} of {len(p_values)} models")
    if rivals := sorted({name.replace("_", " ") for law in laws if law is not None for name in law.better_rivals}):
        notes.append(f"nearer than it: {', '.join(rivals)}")
    what = f"exponent τ of cascades beyond {threshold:g} standard deviations (claimed: 3/2)"
    return Row("K2", what, group, tuple(map(_measured, laws)), against=CLAIMED, note="; ".join(notes))


def _measured(law: Law | None) -> Measured:
    if law is None or law.cutoff_exponent is None:
        return Measured(math.nan, missing="too few cascades for a fit")
    low, high = law.cutoff_interval or (math.nan, math.nan)
    return Measured(law.cutoff_exponent, low, high, over="resampled cascades")


def _cells(group: Group, rows: Sequence[AtThreshold | None]) -> Iterator[Cell]:
    values: list[list[float | None]] = []
    for row in rows:
        law = None if row is None else row.law
        values.append([
            None if row is None else row.cascades, None if row is None else row.robust_branching,
            *((None,) * 8 if law is None else (
                law.exponent, law.cutoff_exponent, law.p_value, law.cutoff, *_ratio(law, "cutoff"),
                _ratio(law, "lognormal")[0], _ratio(law, "exponential")[0],
            )),
        ])  # fmt: skip
    for column in zip(*values, strict=True):
        found = over_seeds(group, column)
        yield None if math.isnan(found.value) else found


QUESTION = Question(EntropyCascades, measure, section, reads_text)
