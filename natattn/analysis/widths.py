"""Claim K1 over models of several widths: T_c(k) = T_0 (d/768)^(−α_k), and do the peaks grow with the width?

What k is the paper leaves open. Here it is each of: all heads together, a layer, and a rank (the heads of a layer in
the order of their T_c, where all models have as many): heads of separate models have no names that could be matched.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtrc

from natattn.analysis.criticality import (
    PEAKS,
    FiniteSize,
    Peak,
    PeakOf,
    critical_temperatures,
    finite_size,
    power_of,
)
from natattn.analysis.run_set import RunSet, Treatment
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import load_subject
from natattn.analysis.temperature_scan import ScanKind, scan_temperatures
from natattn.errors import UserError
from natattn.storage.atomic import write_json
from natattn.storage.documents import hash_of, read_json
from natattn.training.devices import chosen_device

PAPER_WIDTH = 768
LEAST_WIDTHS = 3
KINDS: tuple[ScanKind, ...] = ("frozen", "propagated")


@dataclass(frozen=True)
class HeadPeak:
    """A peak of one head of one model; the last three are None where it has none inside the scan."""

    width: int
    seed: int
    kind: ScanKind
    of: PeakOf
    layer: int
    head: int
    temperature: float | None
    height: float | None
    half_width: float | None

    @property
    def peak(self) -> Peak | None:
        """As ``criticality`` has it; an unknown half-width is nan."""
        if self.temperature is None or self.height is None:
            return None
        return Peak(self.temperature, self.height, math.nan if self.half_width is None else self.half_width)


@dataclass(frozen=True)
class Exponent:
    """α of T_c = T_0 (d/768)^(−α), by least squares of the logarithms over models.

    Attributes:
        where: "all heads", "layer 2" or "rank 0".
        alpha, interval: with the 95 % t interval.
        temperature: T_0, at width 768: an extrapolation wherever no model is so wide.
        models: that have a peak there.
        without_peak: share of heads that had none and were left out.
        lack_of_fit: p-value of the F test that the line's misses are no larger than the spread over seeds; None where
            no width has two seeds. Below 0.05 it is no power law of the width.
    """

    kind: ScanKind
    of: PeakOf
    where: str
    alpha: float
    interval: tuple[float, float]
    temperature: float
    models: int
    without_peak: float
    lack_of_fit: float | None


@dataclass(frozen=True)
class WidthStudy:
    """Everything that the models of several widths say. ``best`` has (width, seed, T of the least loss, loss there)."""

    peaks: tuple[HeadPeak, ...]
    best: tuple[tuple[int, int, float, float], ...]
    exponents: tuple[Exponent, ...]
    sizes: dict[tuple[ScanKind, PeakOf], FiniteSize | None]


def check_widths(runs: RunSet) -> dict[int, Treatment]:
    """The treatments by width.

    Raises: UserError with fewer than three widths, two kinds of runs of one width, or several texts.
    """
    found: dict[int, Treatment] = {}
    for treatment in runs.treatments:
        width = treatment.width
        if width is None:
            raise UserError(f"sections=[widths]: {treatment.label}: its configuration has no size.n_embd")
        if width in found:
            raise UserError(
                f"sections=[widths]: two kinds of runs of width {width}: {found[width].label}; {treatment.label}; "
                "valid: runs that differ in width (and what follows from it) alone"
            )
        found[width] = treatment
    if len(found) < LEAST_WIDTHS:
        raise UserError(f"sections=[widths]: {len(found)} widths; valid: runs of at least {LEAST_WIDTHS}")
    if len({run.data.fingerprint for t in found.values() for run, _ in t.runs if run.data}) > 1:
        raise UserError("sections=[widths]: the runs were trained on different data")
    return dict(sorted(found.items()))


def study_widths(runs: RunSet, settings: AnalyzeSettings, advance: Callable[[int], None]) -> WidthStudy:
    """Scan every trained model, both ways, and fit the exponents. What is scanned already is read.

    Raises: UserError for a set of runs that says nothing about the width, or runs without models.
    """
    peaks: list[HeadPeak] = []
    best: list[tuple[int, int, float, float]] = []
    for width, treatment in check_widths(runs).items():
        for run, arm in treatment.runs:
            found = _scanned(runs.folder, run.folder, arm.name, run.config_hash, settings)
            peaks += [HeadPeak(width=width, seed=run.seed or 0, **peak) for peak in found["peaks"]]
            if found["best"] is not None:
                best.append((width, run.seed or 0, *found["best"]))
            advance(1)
    sizes = {(kind, of): _by_width(peaks, kind, of) for kind in KINDS for of in PEAKS}
    return WidthStudy(tuple(peaks), tuple(best), tuple(exponents(peaks)), sizes)


def exponents(peaks: Sequence[HeadPeak]) -> Iterator[Exponent]:
    """α of every scan, peak and place k, over all models that have a peak there."""
    for kind in KINDS:
        for of in PEAKS:
            mine = [peak for peak in peaks if (peak.kind, peak.of) == (kind, of)]
            for where, members in _places(mine).items():
                widths, values, without = _by_model(members)
                if len(set(widths)) < LEAST_WIDTHS:
                    continue
                power = power_of(widths, values)
                log_scale = float(np.mean(np.log(values) - power.slope * np.log(widths)))
                yield Exponent(
                    kind, of, where, -power.slope, (-power.interval[1], -power.interval[0]),
                    math.exp(log_scale + power.slope * math.log(PAPER_WIDTH)), len(widths), without,
                    lack_of_fit(np.log(widths), np.log(values)),
                )  # fmt: skip


def lack_of_fit(x: ArrayLike, y: ArrayLike) -> float | None:
    """p-value of the F test of a straight line against the spread of repeated measurements at equal x.

    F = (SS_line − SS_within)/(m − 2) over SS_within/(n − m), for n points at m different x; None without repetition or
    with fewer than three different x.
    """
    horizontal, vertical = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    places = np.unique(horizontal)
    count, different = len(horizontal), len(places)
    if different < 3 or count == different:
        return None
    slope, offset = np.polyfit(horizontal, vertical, 1)
    line = float(((vertical - slope * horizontal - offset) ** 2).sum())
    within = sum(float(((own - own.mean()) ** 2).sum()) for own in (vertical[horizontal == place] for place in places))
    if within == 0:
        return 1.0 if line <= 1e-20 else 0.0
    ratio = max(0.0, line - within) / (different - 2) / (within / (count - different))
    return float(fdtrc(different - 2, count - different, ratio))


def _places(peaks: Sequence[HeadPeak]) -> dict[str, list[HeadPeak]]:
    places = {"all heads": list(peaks)}
    for layer in sorted({peak.layer for peak in peaks}):
        places[f"layer {layer}"] = [peak for peak in peaks if peak.layer == layer]
    models: dict[tuple[int, int, int], list[HeadPeak]] = {}
    for peak in peaks:
        models.setdefault((peak.width, peak.seed, peak.layer), []).append(peak)
    if len({len(heads) for heads in models.values()}) == 1:
        for heads in models.values():
            # Heads without a peak have the highest T_c, or none at all: they come last.
            heads.sort(key=lambda peak: math.inf if peak.temperature is None else peak.temperature)
            for rank, peak in enumerate(heads):
                places.setdefault(f"rank {rank}", []).append(peak)
    return places


def _by_model(peaks: Sequence[HeadPeak]) -> tuple[list[int], list[float], float]:
    """Width and geometric mean of T_c of every model that has a peak, and the share of heads without one."""
    models: dict[tuple[int, int], list[float]] = {}
    for peak in peaks:
        if peak.temperature is not None:
            models.setdefault((peak.width, peak.seed), []).append(math.log(peak.temperature))
    known = sum(map(len, models.values()))
    widths = [width for width, _ in models]
    return widths, [math.exp(sum(logs) / len(logs)) for logs in models.values()], 1 - known / max(1, len(peaks))


def _by_width(peaks: Sequence[HeadPeak], kind: ScanKind, of: PeakOf) -> FiniteSize | None:
    widths = sorted({peak.width for peak in peaks})
    found = [[p.peak for p in peaks if (p.width, p.kind, p.of) == (width, kind, of)] for width in widths]
    return finite_size(widths, found)


def _scanned(folder: Path, run: Path, arm: str, digest: str, settings: AnalyzeSettings) -> dict[str, Any]:
    """Peaks of one trained arm, from the file that an earlier sitting left or anew."""
    measured = settings.model_dump(mode="json", include={"text", "temperatures", "seed"})
    trained = [(file.name, file.stat().st_mtime_ns) for file in sorted((run / "arms" / arm / "model").glob("*"))]
    key = hash_of([digest, arm, measured, trained])
    kept = folder / "scans" / f"{key[:20]}.json"
    try:
        content = read_json(kept)
        if content["key"] == key:
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    of_run = settings.model_copy(update={"run": str(run), "runs": None, "arm": arm})
    subject = load_subject(of_run, chosen_device(settings.device))
    result: dict[str, Any] = {"key": key, "run": run.name, "peaks": [], "best": None}
    peaks = []
    for kind in KINDS:
        scan = scan_temperatures(
            subject.model, subject.tokens, settings.temperatures.values, kind=kind, batch_size=settings.text.batch_size
        )
        for of in PEAKS:
            for item in critical_temperatures(scan, of, replicas=0):
                peak = None if item.peak is None else asdict(item.peak)
                peaks.append({
                    "kind": kind, "of": of, "layer": item.layer, "head": item.head,
                    "temperature": peak and peak["temperature"], "height": peak and peak["height"],
                    "half_width": peak and (None if math.isnan(peak["width"]) else peak["width"]),
                })  # fmt: skip
        if scan.loss is not None:
            losses = scan.loss.mean(1)
            at = int(losses.argmin())
            result["best"] = [float(scan.temperatures[at]), float(losses[at])]
    result["peaks"] = peaks
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, result)
    except OSError as error:
        raise UserError(f"{kept}: cannot be written: {error.strerror}") from error
    return result
