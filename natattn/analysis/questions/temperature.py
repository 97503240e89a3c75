"""Temperature: scans of a model, the critical temperatures of its heads, and how peaks move with the context.

Frozen scans keep the scores of the model, propagated scans apply T in every layer; see ``temperature_scan``. A study
shows correlation lengths and susceptibilities in tables, over temperature, training and context; the claim about
critical temperatures (K1) is judged over models of several widths, in ``widths``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from natattn.analysis.criticality import (
    PEAKS,
    CriticalTemperature,
    FiniteSize,
    PeakOf,
    correlation_lengths,
    critical_temperatures,
    finite_size,
)
from natattn.analysis.frame import Question
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject, has_one_sequence, reads_text
from natattn.analysis.temperature_scan import ScanKind, TemperatureScan, scan_temperatures
from natattn.analysis.verdicts import AnalysisResult, Group, groups, over_seeds
from natattn.report import figures
from natattn.report.section import Advance, Picture, Section, head_map, interval_text, shown, table
from natattn.report.table import Cell, Estimate, Finding, StudyTable

Rows = tuple[tuple[float, ...], ...]
SMALLEST_CONTEXT = 16
TITLES: dict[ScanKind, str] = {
    "frozen": "Temperature, scores frozen",
    "propagated": "Temperature, applied in every layer",
}
SCANS: dict[ScanKind, str] = {"frozen": "scores frozen", "propagated": "T in every layer"}
CURVES = {
    "internal_energy": "internal energy U",
    "entropy": "entropy S, nats",
    "heat_capacity": "heat capacity C",
    "order_parameter": "order parameter m",
    "susceptibility": "susceptibility χ",
    "correlation_length": "correlation length ξ, tokens",
    "loss": "loss, nats/token",
}
COMPARED = ("order_parameter", "correlation_length", "susceptibility", "heat_capacity", "entropy")  # between models


@dataclass(frozen=True)
class LeastLoss:
    """The scanned temperature with the least loss.

    Attributes:
        temperature, loss: in nats/token, mean over sequences.
        own: the scanned temperature closest to 1, the model's own.
        difference, error: of the loss from that at ``own``, with its standard error over sequences (nan for one).
    """

    temperature: float
    loss: float
    own: float
    difference: float
    error: float


@dataclass(frozen=True)
class Scan:
    """The result of one scan.

    Attributes:
        temperatures: T, in the order of the scan.
        layers: indices of the scanned layers.
        means: by name of ``CURVES``, means over rows, heads, sequences and layers at each temperature.
        by_layer: the same before the mean over layers, [T, layers]; the loss has one column. Empty in results that were
            kept before it was recorded.
        peaks: critical temperatures of all heads, layer by layer.
        least_loss: None if the scan has no loss.
    """

    kind: ScanKind
    temperatures: tuple[float, ...]
    layers: tuple[int, ...]
    means: dict[str, tuple[float, ...]]
    by_layer: dict[str, Rows]
    peaks: dict[PeakOf, tuple[CriticalTemperature, ...]]
    least_loss: LeastLoss | None


@dataclass(frozen=True)
class ContextPeaks:
    """Means over the heads that have a peak, for one observable and one length of the context.

    ``temperature``, ``height`` and ``half_width`` (in log T) are None if no head has one.
    """

    of: PeakOf
    tokens: int
    with_peak: int
    heads: int
    temperature: float | None
    height: float | None
    half_width: float | None


@dataclass(frozen=True)
class Contexts:
    """The result for ever longer beginnings of the same sequences, scores frozen.

    Attributes:
        temperatures: T.
        lengths: in tokens, rising.
        peaks: by observable, then by length.
        growth: how the peaks move with the length; None at fewer than three lengths with peaks.
        curves: means over heads and layers, [T, lengths].
    """

    temperatures: tuple[float, ...]
    lengths: tuple[int, ...]
    peaks: tuple[ContextPeaks, ...]
    growth: dict[PeakOf, FiniteSize | None]
    curves: dict[PeakOf, Rows]


def measure(kind: ScanKind, subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Scan:
    """Scan the temperatures of the settings in one way, and find the peak of every head."""
    scan = scan_temperatures(
        subject.model, subject.tokens, settings.temperatures.values, kind=kind, batch_size=settings.text.batch_size,
        advance=advance,
    )  # fmt: skip
    curves = {name: scan.values[name].mean((2, 3)).numpy() for name in CURVES if name in scan.values}
    curves["susceptibility"] = scan.susceptibility.mean(2).numpy()
    curves["correlation_length"] = correlation_lengths(scan.lag_profile)[0].mean(2).numpy()
    if scan.loss is not None:
        curves["loss"] = scan.loss.mean(1, keepdim=True).numpy()
    peaks = {of: critical_temperatures(scan, of, replicas=settings.replicas, seed=settings.seed) for of in PEAKS}
    return Scan(
        kind, tuple(scan.temperatures.tolist()), tuple(scan.layers),
        {name: tuple(float(values.mean()) for values in curve) for name, curve in curves.items()},
        {name: tuple(map(tuple, curve.tolist())) for name, curve in curves.items()},
        {of: tuple(found) for of, found in peaks.items()},
        None if scan.loss is None else least_loss(scan.temperatures, scan.loss),
    )  # fmt: skip


def least_loss(temperatures: Tensor, loss: Tensor) -> LeastLoss:
    """Return the temperature with the least mean of the losses [T, sequences], compared with the one closest to 1."""
    means = loss.mean(1)
    best, nearest = int(means.argmin()), int((temperatures - 1).abs().argmin())
    difference = loss[best] - loss[nearest]
    error = float(difference.std() / len(difference) ** 0.5) if len(difference) > 1 else math.nan
    return LeastLoss(
        float(temperatures[best]), float(means[best]), float(temperatures[nearest]), float(difference.mean()), error
    )


def section(result: Scan) -> Section:
    """Show curves by layer, critical temperatures by head, and how both compare with T = 1."""
    findings, marked = [_peak_sentence(of, result.peaks[of]) for of in PEAKS], {"T = 1": 1.0}
    if result.least_loss is not None:
        findings.append(loss_sentence(result.least_loss))
        marked["least loss"] = result.least_loss.temperature
    peak_headings = ["layer", "head"]
    for of in PEAKS:
        peak_headings += [f"T_c by {of.replace('_', ' ')}", "95 % interval", "height", "width in log T"]
    peak_rows = []
    for heads in zip(*(result.peaks[of] for of in PEAKS), strict=True):
        row: list[str | float | int | None] = [heads[0].layer, heads[0].head]
        for head in heads:
            interval = None if head.interval is None else interval_text(*head.interval)
            row += (
                [None, interval, None, None]
                if head.peak is None
                else [head.peak.temperature, interval, head.peak.height, head.peak.width]
            )
        peak_rows.append(row)
    names = [name for name in CURVES if name in result.means]
    curve_rows = zip(result.temperatures, *(result.means[name] for name in names), strict=True)
    tables = (
        table(peak_headings, peak_rows),
        table(("temperature", *(CURVES[name] for name in names)), list(curve_rows)),
    )
    maps = []
    for of in PEAKS:
        values: dict[int, list[float]] = {layer: [] for layer in result.layers}
        for critical in result.peaks[of]:
            values[critical.layer].append(math.nan if critical.peak is None else critical.peak.temperature)
        maps.append(head_map(f"T_c by {of.replace('_', ' ')}", result.layers, values.values()))
    pictures = (_scan_picture(result, marked),) if result.by_layer else ()
    return Section(result.kind, TITLES[result.kind], tuple(findings), tables, tuple(maps), pictures)


def _scan_picture(result: Scan, marked: dict[str, float]) -> Picture:
    panels = [(CURVES[name], np.array(result.by_layer[name])) for name in CURVES if name in result.by_layer]
    rows = [
        (temperature, label, layer, float(value))
        for label, values in panels
        for temperature, of_layers in zip(result.temperatures, values, strict=True)
        for layer, value in zip(result.layers, of_layers, strict=False)  # the loss has one value for all layers
    ]
    caption = (
        "Means over rows, heads and sequences. A peak of the heat capacity alone is no transition: any spread of "
        "scores has one. Does it stand at T = 1, and does the order parameter change there?"
    )
    return Picture(
        f"{result.kind}_scan", caption, table(("temperature", "quantity", "layer", "value"), rows),
        figures.curves(panels, np.array(result.temperatures), [f"layer {layer}" for layer in result.layers],
                       x_label="T", marked=marked),
    )  # fmt: skip


def loss_sentence(least: LeastLoss) -> str:
    """State the temperature of the least loss, and its difference from the model's own."""
    text = f"The loss is least at T = {shown(least.temperature)} ({shown(least.loss, 4)} nats/token)"
    if least.temperature == least.own:
        own = "the model's own" if least.own == 1 else f"T = {shown(least.own)}, the nearest to the model's own"
        return f"{text}: of the temperatures tried none is better than {own}."
    return (
        f"{text}, {shown(least.difference)} ± {shown(2 * least.error)} against T = {shown(least.own)} (two standard "
        "errors over sequences)."
    )


def _peak_sentence(of: PeakOf, heads: Sequence[CriticalTemperature]) -> str:
    inside = sorted(head.peak.temperature for head in heads if head.peak is not None)
    name = of.replace("_", " ")
    if not inside:
        return f"The {name} has no peak inside the range in any of {len(heads)} heads."
    around = sum(1 for head in heads if head.interval and head.interval[0] <= 1 <= head.interval[1])
    return (
        f"The {name} peaks inside the range in {len(inside)} of {len(heads)} heads, at T from {shown(inside[0])} to "
        f"{shown(inside[-1])}, median {shown(inside[len(inside) // 2])}; in {around} the 95 % interval holds T = 1."
    )


def measure_contexts(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Contexts:
    """Scan ever longer beginnings of the sequences, scores frozen."""
    longest = subject.tokens.shape[1]
    lengths = [longest >> shift for shift in range(6) if longest >> shift >= SMALLEST_CONTEXT][::-1]
    scans = [
        scan_temperatures(
            subject.model, subject.tokens[:, :length], settings.temperatures.values,
            batch_size=settings.text.batch_size, advance=advance,
        )
        for length in lengths
    ]  # fmt: skip
    peaks: list[ContextPeaks] = []
    growth: dict[PeakOf, FiniteSize | None] = {}
    for of in PEAKS:
        by_length = [[head.peak for head in critical_temperatures(scan, of, replicas=0)] for scan in scans]
        for length, of_length in zip(lengths, by_length, strict=True):
            inside = [peak for peak in of_length if peak is not None]
            means = (_finite_mean([getattr(p, name) for p in inside]) for name in ("temperature", "height", "width"))
            peaks.append(ContextPeaks(of, length, len(inside), len(of_length), *means))
        growth[of] = finite_size(lengths, by_length)
    curves: dict[PeakOf, Rows] = {
        of: tuple(zip(*(_mean_curve(scan, of).tolist() for scan in scans), strict=True)) for of in PEAKS
    }
    return Contexts(tuple(scans[-1].temperatures.tolist()), tuple(lengths), tuple(peaks), growth, curves)


def _finite_mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else None


def _mean_curve(scan: TemperatureScan, of: PeakOf) -> NDArray[np.float64]:
    """Return the mean over layers and heads, [T]."""
    values = scan.susceptibility.mean((1, 2)) if of == "susceptibility" else scan.values[of].mean((1, 2, 3))
    return values.numpy()


def contexts_section(result: Contexts) -> Section:
    """Show whether the peaks grow and sharpen with the context, as those of a transition would."""
    data = table(
        ("peak of", "tokens", "heads with a peak", "T", "height", "width in log T"),
        [(p.of, p.tokens, f"{p.with_peak} of {p.heads}", p.temperature, p.height, p.half_width) for p in result.peaks],
    )
    panels = [
        (label, np.array(result.curves[of]))
        for of, label in zip(PEAKS, ("heat capacity C", "susceptibility χ"), strict=True)
    ]
    picture = Picture(
        "sizes_scan",
        "Means over heads and layers, one curve for each length of the context. At a transition the peak would grow "
        "and sharpen with it; a crossover only rounds off.",
        data,
        figures.curves(
            panels, np.array(result.temperatures), [f"{length} tokens" for length in result.lengths], x_label="T",
            marked={"T = 1": 1.0},
        ),
    )  # fmt: skip
    findings = (*(growth_sentence(of, result.growth[of]) for of in PEAKS), _trivial_growth_sentence(result.peaks))
    return Section("sizes", "Finite size: the context", findings, (data,), (), (picture,))


def growth_sentence(of: PeakOf, sizes: FiniteSize | None) -> str:
    """State how the peaks of an observable move with the context."""
    name = of.replace("_", " ")
    if sizes is None:
        return f"Of the {name} there are peaks inside the range at fewer than three lengths: nothing can be said."
    parts = [
        f"{label} ∝ L^{shown(power.slope)} {interval_text(*power.interval)}"
        for label, power in (("height", sizes.height), ("width in log T", sizes.width), ("T_c", sizes.temperature))
    ]
    return f"Peaks of the {name} as the context grows: {sizes.verdict}: {', '.join(parts)}."


def _trivial_growth_sentence(peaks: Sequence[ContextPeaks]) -> str:
    """State the heights per log L (C) and per key (χ), which independent scores would leave constant."""
    parts = []
    for of, name, size in (("heat_capacity", "C per nat of log L", math.log), ("susceptibility", "χ per key", float)):
        ends = [peak.height / size(peak.tokens) for peak in peaks if peak.of == of and peak.height is not None]
        parts.append(f"{name} {shown(ends[0])} to {shown(ends[-1])}" if ends else f"{name} unknown")
    return (
        f"Height of the peaks from the shortest to the longest context: {', '.join(parts)}. Independent scores give "
        "constants here: a height that grows no faster is no sign of a transition."
    )


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Return tables alone: ξ, χ, m, C and S over temperature, over training at T = 1, and peaks over the context."""
    curves: list[tuple[Cell, ...]] = []
    trained: list[tuple[Cell, ...]] = []
    curve_runs, trained_runs = [], []
    for kind, words in SCANS.items():
        for group in groups(analyses, kind):
            scans = group.results(kind, Scan)
            temperatures = sorted({temperature for scan in scans for temperature in scan.temperatures})
            for temperature in temperatures:
                curves.append((group.label, words, temperature, *_at(group, scans, temperature)))
                curve_runs.append(group.runs)
            if kind == "frozen":  # at T = 1 both scans are the model itself
                nearest = min(temperatures, key=lambda value: abs(math.log(value)))
                trained.append((group.label, group.steps, nearest, *_at(group, scans, nearest)))
                trained_runs.append(group.runs)
    caption = (
        "Means over rows, heads and layers, then over seeds with 95 % t intervals, not adjusted; ξ by the second "
        "moment of the order parameter's correlation over lags."
    )
    headings = tuple(CURVES[name] for name in COMPARED)
    tables = [
        StudyTable(
            "correlation_by_temperature", "Correlation length and susceptibility over temperature", caption,
            ("models", "scan", "T", *headings), tuple(curves), tuple(curve_runs),
        ),
        StudyTable(
            "correlation_by_steps", "Correlation length and susceptibility over training", caption,
            ("models", "steps", "T", *headings), tuple(trained), tuple(trained_runs),
        ),
        _context_table(analyses),
    ]  # fmt: skip
    return [], [table for table in tables if table.rows]


def _at(group: Group, scans: Sequence[Scan], temperature: float) -> list[Estimate]:
    """Return the means over seeds at one temperature; scans without it are left out."""
    indices = [scan.temperatures.index(temperature) if temperature in scan.temperatures else None for scan in scans]
    return [
        over_seeds(
            group, [None if i is None else scan.means[name][i] for scan, i in zip(scans, indices, strict=True)]
        )
        for name in COMPARED
    ]  # fmt: skip


def _context_table(analyses: Sequence[AnalysisResult]) -> StudyTable:
    """Return the heights, also divided by what independent scores would gain: C by log L, χ by L."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for group in groups(analyses, "sizes"):
        by_model = [{(p.of, p.tokens): p for p in result.peaks} for result in group.results("sizes", Contexts)]
        for of, tokens in by_model[0]:
            peaks = [model.get((of, tokens)) for model in by_model]
            height, *others = (
                over_seeds(group, [None if peak is None else getattr(peak, name) for peak in peaks])
                for name in ("height", "temperature", "half_width")
            )
            share = math.log(tokens) if of == "heat_capacity" else float(tokens)
            rows.append((group.label, of.replace("_", " "), tokens, others[0], height, others[1], height.value / share))
            runs.append(group.runs)
    caption = (
        "Scores frozen. Independent scores would give a constant last column (C per nat of log L, χ per key): a height "
        "that grows no faster is no sign of a transition."
    )
    headings = ("models", "peak of", "tokens", "T", "height", "width in log T", "height per log L or L")
    return StudyTable("peaks_by_context", "Peaks over the context", caption, headings, tuple(rows), tuple(runs))


FROZEN = Question(Scan, partial(measure, "frozen"), section, has_one_sequence)
PROPAGATED = Question(Scan, partial(measure, "propagated"), section, has_one_sequence)
SIZES = Question(Contexts, measure_contexts, contexts_section, reads_text)
