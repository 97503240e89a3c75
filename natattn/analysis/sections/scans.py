"""Sections about temperature: the scans, the critical temperatures of heads, and what the context does to them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from natattn.analysis.criticality import (
    PEAKS,
    CriticalTemperature,
    FiniteSize,
    PeakOf,
    correlation_lengths,
    critical_temperatures,
    finite_size,
)
from natattn.analysis.pictures import figures
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.analysis.temperature_scan import ScanKind, TemperatureScan, scan_temperatures
from natattn.report.section import (
    Advance,
    Cell,
    HeadMap,
    Picture,
    Section,
    Table,
    head_map,
    interval_text,
    shown,
    table,
)

Floats = NDArray[np.float64]
SMALLEST_CONTEXT = 16
TITLES = {
    "frozen": "Temperature, scores frozen",
    "propagated": "Temperature, applied in every layer",
}


def scan_section(kind: ScanKind, subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """One scan: curves by layer, critical temperatures by head, and where T = 1 stands."""
    scan = scan_temperatures(
        subject.model, subject.tokens, settings.temperatures.values, kind=kind, batch_size=settings.text.batch_size,
        advance=advance,
    )  # fmt: skip
    found = {of: critical_temperatures(scan, of, replicas=settings.replicas, seed=settings.seed) for of in PEAKS}
    panels, marked = _panels(scan), {"T = 1": 1.0}
    findings = [_of_peaks(of, found[of]) for of in PEAKS]
    if scan.loss is not None:
        best, sentence = _best_temperature(scan)
        findings.append(sentence)
        marked["least loss"] = best
    grid = scan.temperatures.numpy()
    rows = [
        (float(t), label, layer, float(values[i, place]))
        for label, values in panels
        for i, t in enumerate(grid)
        for place, layer in enumerate(scan.layers if values.shape[1] > 1 else scan.layers[:1])
    ]
    caption = (
        "Means over rows, heads and sequences. A peak of the heat capacity alone is no transition: any spread of "
        "scores has one. Does it stand at T = 1, and does the order parameter change there?"
    )
    picture = Picture(
        f"{kind}_scan", caption, table(("temperature", "quantity", "layer", "value"), rows),
        figures.curves(panels, grid, [f"layer {layer}" for layer in scan.layers], x_label="T", marked=marked),
    )  # fmt: skip
    maps = tuple(_peak_map(of, scan, found[of]) for of in PEAKS)
    return Section(
        kind, TITLES[kind], tuple(findings), (_peak_table(found), _curve_table(scan, panels)), maps, (picture,)
    )


def finite_size_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Frozen scans of ever shorter beginnings of the sequences: do the peaks grow and sharpen with the context?"""
    longest = subject.tokens.shape[1]
    lengths = [longest >> shift for shift in range(6) if longest >> shift >= SMALLEST_CONTEXT][::-1]
    scans = [
        scan_temperatures(
            subject.model, subject.tokens[:, :length], settings.temperatures.values,
            batch_size=settings.text.batch_size, advance=advance,
        )
        for length in lengths
    ]  # fmt: skip
    findings, rows = [], []
    for of in PEAKS:
        peaks = [[item.peak for item in critical_temperatures(scan, of, replicas=0)] for scan in scans]
        for length, of_length in zip(lengths, peaks, strict=True):
            inside = [peak for peak in of_length if peak is not None]
            means = [_known_mean([getattr(p, name) for p in inside]) for name in ("temperature", "height", "width")]
            rows.append((of, length, f"{len(inside)} of {len(of_length)}", *means))
        findings.append(_of_sizes(of, finite_size(lengths, peaks)))
    findings.append(_of_trivial_growth(rows))
    data = table(("peak of", "tokens", "heads with a peak", "T", "height", "width in log T"), rows)
    grid = scans[-1].temperatures.numpy()
    panels = [
        (label, torch.stack([_by_size(scan, of) for scan in scans], 1).numpy())
        for of, label in zip(PEAKS, ("heat capacity C", "susceptibility χ"), strict=True)
    ]
    picture = Picture(
        "sizes_scan",
        "Means over heads and layers, one curve for each length of the context. At a transition the peak would grow "
        "and sharpen with it; a crossover only rounds off.",
        data,
        figures.curves(panels, grid, [f"{length} tokens" for length in lengths], x_label="T", marked={"T = 1": 1.0}),
    )
    return Section("sizes", "Finite size: the context", tuple(findings), (data,), (), (picture,))


def _known_mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _panels(scan: TemperatureScan) -> list[tuple[str, Floats]]:
    """Label and values [T, layers]; the loss has one column."""
    means = {name: values.mean((2, 3)).numpy() for name, values in scan.values.items()}
    second, _ = correlation_lengths(scan.lag_profile)
    panels = [
        ("internal energy U", means["internal_energy"]),
        ("entropy S, nats", means["entropy"]),
        ("heat capacity C", means["heat_capacity"]),
        ("order parameter m", means["order_parameter"]),
        ("susceptibility χ", scan.susceptibility.mean(2).numpy()),
        ("correlation length ξ, tokens", second.mean(2).numpy()),
    ]
    if scan.loss is not None:
        panels.append(("loss, nats/token", scan.loss.mean(1, keepdim=True).numpy()))
    return panels


def _curve_table(scan: TemperatureScan, panels: Sequence[tuple[str, Floats]]) -> Table:
    """Means over layers at every temperature: what the picture has by layer."""
    headings = ("temperature", *(label for label, _ in panels))
    return table(headings, [
        (float(temperature), *(float(values[place].mean()) for _, values in panels))
        for place, temperature in enumerate(scan.temperatures)
    ])  # fmt: skip


def _best_temperature(scan: TemperatureScan) -> tuple[float, str]:
    assert scan.loss is not None
    means = scan.loss.mean(1)
    best = int(means.argmin())
    temperature = float(scan.temperatures[best])
    nearest = int((scan.temperatures - 1).abs().argmin())
    difference = scan.loss[best] - scan.loss[nearest]
    at = float(scan.temperatures[nearest])
    own = "the model's own" if at == 1 else f"T = {shown(at)}, the nearest to the model's own"
    error = float(difference.std() / len(difference) ** 0.5) if len(difference) > 1 else float("nan")
    least = f"The loss is least at T = {shown(temperature)} ({shown(float(means[best]), 4)} nats/token)"
    if best == nearest:
        return temperature, f"{least}: of the temperatures tried none is better than {own}."
    return temperature, (
        f"{least}, {shown(float(difference.mean()))} ± {shown(2 * error)} against T = {shown(at)} (two standard errors "
        "over sequences)."
    )


def _of_peaks(of: PeakOf, found: Sequence[CriticalTemperature]) -> str:
    inside = sorted(item.peak.temperature for item in found if item.peak is not None)
    name = of.replace("_", " ")
    if not inside:
        return f"The {name} has no peak inside the range in any of {len(found)} heads."
    around = sum(1 for item in found if item.interval and item.interval[0] <= 1 <= item.interval[1])
    return (
        f"The {name} peaks inside the range in {len(inside)} of {len(found)} heads, at T from {shown(inside[0])} to "
        f"{shown(inside[-1])}, median {shown(inside[len(inside) // 2])}; in {around} the 95 % interval holds T = 1."
    )


def _of_sizes(of: PeakOf, found: FiniteSize | None) -> str:
    name = of.replace("_", " ")
    if found is None:
        return f"Of the {name} there are peaks inside the range at fewer than three lengths: nothing can be said."
    parts = [
        f"{label} ∝ L^{shown(power.slope)} {interval_text(*power.interval)}"
        for label, power in (("height", found.height), ("width in log T", found.width), ("T_c", found.temperature))
    ]
    return f"Peaks of the {name} as the context grows: {found.verdict}: {', '.join(parts)}."


def _of_trivial_growth(rows: Sequence[tuple[Cell, ...]]) -> str:
    """What independent scores would gain from more keys: C with the nats of a row, log L, and χ with its factor n."""
    parts = []
    for of, name, size in (("heat_capacity", "C per nat of log L", math.log), ("susceptibility", "χ per key", float)):
        known = [
            (row[1], row[4]) for row in rows if row[0] == of and isinstance(row[1], int) and isinstance(row[4], float)
        ]
        ends = [height / size(length) for length, height in known]
        parts.append(f"{name} {shown(ends[0])} to {shown(ends[-1])}" if ends else f"{name} unknown")
    return (
        f"Height of the peaks from the shortest to the longest context: {', '.join(parts)}. Independent scores give "
        "constants here: a height that grows no faster is no sign of a transition."
    )


def _by_size(scan: TemperatureScan, of: PeakOf) -> torch.Tensor:
    """Mean over layers and heads, [T]."""
    return scan.susceptibility.mean((1, 2)) if of == "susceptibility" else scan.values[of].mean((1, 2, 3))


def _peak_map(of: PeakOf, scan: TemperatureScan, found: Sequence[CriticalTemperature]) -> HeadMap:
    count = len(found) // len(scan.layers)
    values = [float("nan") if item.peak is None else item.peak.temperature for item in found]
    rows = [values[place * count : (place + 1) * count] for place in range(len(scan.layers))]
    return head_map(f"T_c by {of.replace('_', ' ')}", scan.layers, rows)


def _peak_table(found: dict[PeakOf, list[CriticalTemperature]]) -> Table:
    headings = ["layer", "head"]
    for of in PEAKS:
        name = of.replace("_", " ")
        headings += [f"T_c by {name}", "95 % interval", "height", "width in log T"]
    rows = []
    for items in zip(*found.values(), strict=True):
        row: list[str | float | int | None] = [items[0].layer, items[0].head]
        for item in items:
            peak = item.peak
            row += [
                None if peak is None else peak.temperature,
                None if item.interval is None else interval_text(*item.interval),
                None if peak is None else peak.height,
                None if peak is None else peak.width,
            ]
        rows.append(row)
    return table(headings, rows)
