"""Claim K1, T_c(k) = T_0 (d/768)^(−α_k), over models of several widths: α, and whether peaks grow with the width.

The paper leaves open what k is. Here it is each of: all heads together, a layer, and a rank (the heads of a layer in
the order of their T_c, if all models have as many), because heads of separate models have no names to match them by.
α is the slope of least squares of log T_c on log d over models, by the peak of the heat capacity and of the
susceptibility, in two scans that are never mixed: scores frozen, and T in every layer. The claim needs α > 0. Whether
peaks grow and sharpen with the width, as those of a transition would and those of a crossover would not, is shown as
well and does not bear on α.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtrc

from natattn.analysis.criticality import PEAKS, FiniteSize, Peak, PeakOf, critical_temperatures, finite_size, power_of
from natattn.analysis.frame import Question, from_json, to_json
from natattn.analysis.run_set import RunSet, Treatment
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import load_subject
from natattn.analysis.temperature_scan import ScanKind, scan_temperatures
from natattn.analysis.verdicts import AnalysisResult, Fit, adjusted, known, one_sided
from natattn.errors import UserError
from natattn.report import figures
from natattn.report.figures import Points
from natattn.report.section import Advance, Picture, Section, interval_text, shown, table
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.statistics.paired import LEAST_FOR_A_CLAIM
from natattn.storage.atomic import write_json
from natattn.storage.documents import hash_of, read_json
from natattn.training.devices import chosen_device

PAPER_WIDTH = 768
LEAST_WIDTHS = 3
ALL_HEADS = "all heads"
KINDS: tuple[ScanKind, ...] = ("frozen", "propagated")
SCANS = {"frozen": "scores frozen", "propagated": "T in every layer"}
SYMBOLS = {"heat_capacity": "C", "susceptibility": "χ"}
INDIFFERENCE = 0.02  # of α: T_c changes by 4 % from width 128 to 1,024
FIT_LEVEL = 0.05


@dataclass(frozen=True)
class HeadPeak:
    """A peak of one head of one model.

    ``temperature`` and ``height`` are None if the head has no peak inside the scan; ``half_width``, in log T, also if
    the peak is cut off.
    """

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
        """The peak in the form of ``criticality``: an unknown half-width is nan."""
        if self.temperature is None or self.height is None:
            return None
        return Peak(self.temperature, self.height, math.nan if self.half_width is None else self.half_width)


@dataclass(frozen=True)
class LeastLoss:
    """The temperature with the least loss of one model, on the grid of the scan, and the loss there in nats/token."""

    width: int
    seed: int
    temperature: float
    loss: float


@dataclass(frozen=True)
class Exponent:
    """α of T_c = T_0 (d/768)^(−α), by least squares of the logarithms over models.

    Attributes:
        where: "all heads", "layer 2" or "rank 0".
        alpha, interval: with the 95 % t interval.
        temperature: T_0, at width 768: an extrapolation unless a model is that wide.
        models: number of models with a peak there.
        without_peak: share of heads that had no peak and were left out.
        lack_of_fit: p-value of the F test that the misses of the line are no larger than the spread over seeds; None if
            no width has two seeds. Below 0.05, T_c is not a power of the width.
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

    @property
    def words(self) -> tuple[str, str]:
        """The scan and the observable, as tables name them."""
        return SCANS[self.kind], self.of.replace("_", " ")

    @property
    def is_power(self) -> bool:
        """True unless the lack of fit refutes a power of the width."""
        return self.lack_of_fit is None or self.lack_of_fit >= FIT_LEVEL


@dataclass(frozen=True)
class Growth:
    """Scaling of one observable's peaks in one scan with the width; None with fewer than three widths."""

    kind: ScanKind
    of: PeakOf
    sizes: FiniteSize | None


@dataclass(frozen=True)
class Widths:
    """The result for models of several widths."""

    peaks: tuple[HeadPeak, ...]
    least_losses: tuple[LeastLoss, ...]
    exponents: tuple[Exponent, ...]
    growth: tuple[Growth, ...]


def measure(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Widths:
    """Scan every trained model, both ways, and fit the exponents. Models that were scanned before are read.

    Raises: UserError if the runs do not differ in their width alone, or have no models.
    """
    peaks: list[HeadPeak] = []
    least: list[LeastLoss] = []
    for width, treatment in check_widths(runs).items():
        for run, arm in treatment.runs:
            scanned = _scan(width, runs.folder, run, arm, settings)
            peaks += scanned.peaks
            least += scanned.least_losses
            advance(1)
    return study(peaks, least)


def study(peaks: Sequence[HeadPeak], least_losses: Sequence[LeastLoss]) -> Widths:
    """Fit exponents and growth to the peaks of all models."""
    growth = []
    widths = sorted({peak.width for peak in peaks})
    for kind in KINDS:
        for of in PEAKS:
            by_width = [[p.peak for p in peaks if (p.width, p.kind, p.of) == (width, kind, of)] for width in widths]
            growth.append(Growth(kind, of, finite_size(widths, by_width)))
    return Widths(tuple(peaks), tuple(least_losses), tuple(exponents(peaks)), tuple(growth))


def check_widths(runs: RunSet) -> dict[int, Treatment]:
    """Return the treatments by width.

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


def have_widths(runs: RunSet) -> bool:
    """Return whether there are at least three widths, one kind of runs each, and their models are still there."""
    try:
        treatments = check_widths(runs)
    except UserError:
        return False
    return all((run.folder / "arms" / arm.name / "model").is_dir() for t in treatments.values() for run, arm in t.runs)


def exponents(peaks: Sequence[HeadPeak]) -> Iterator[Exponent]:
    """Yield α of every scan, observable and k, over all models that have a peak there."""
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
    """Return the p-value of the F test of a straight line against the spread of repeated measurements at equal x.

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
    places = {ALL_HEADS: list(peaks)}
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
    """Return the width and geometric mean of T_c of every model with a peak, and the share of heads without one."""
    models: dict[tuple[int, int], list[float]] = {}
    for peak in peaks:
        if peak.temperature is not None:
            models.setdefault((peak.width, peak.seed), []).append(math.log(peak.temperature))
    with_peak = sum(map(len, models.values()))
    widths = [width for width, _ in models]
    return widths, [math.exp(sum(logs) / len(logs)) for logs in models.values()], 1 - with_peak / max(1, len(peaks))


@dataclass(frozen=True)
class _Scanned:
    """The peaks of one trained arm, as they are kept in a file."""

    key: str
    peaks: tuple[HeadPeak, ...]
    least_losses: tuple[LeastLoss, ...]


def _scan(width: int, folder: Path, run: RunSummary, arm: ArmSummary, settings: AnalyzeSettings) -> _Scanned:
    """Return the peaks of one trained arm, from the file of an earlier call or measured and kept."""
    measured = settings.model_dump(mode="json", include={"text", "temperatures", "seed"})
    files = sorted((run.folder / "arms" / arm.name / "model").glob("*"))
    key = hash_of([run.config_hash, arm.name, measured, [(file.name, file.stat().st_mtime_ns) for file in files]])
    kept = folder / "scans" / f"{key[:20]}.json"
    try:
        found = from_json(_Scanned, read_json(kept))
        if isinstance(found, _Scanned) and found.key == key:
            return found
    except (OSError, ValueError):
        pass
    of_run = settings.model_copy(update={"run": str(run.folder), "runs": None, "arm": arm.name})
    subject = load_subject(of_run, chosen_device(settings.device))
    seed = run.seed or 0
    peaks: list[HeadPeak] = []
    least: tuple[LeastLoss, ...] = ()
    for kind in KINDS:
        scan = scan_temperatures(
            subject.model, subject.tokens, settings.temperatures.values, kind=kind, batch_size=settings.text.batch_size
        )
        for of in PEAKS:
            for item in critical_temperatures(scan, of, replicas=0):
                three: tuple[float | None, float | None, float | None] = (None, None, None)
                if item.peak is not None:
                    three = item.peak.temperature, item.peak.height, known(item.peak.width)
                peaks.append(HeadPeak(width, seed, kind, of, item.layer, item.head, *three))
        if scan.loss is not None:
            losses = scan.loss.mean(1)
            best = int(losses.argmin())
            least = (LeastLoss(width, seed, float(scan.temperatures[best]), float(losses[best])),)
    result = _Scanned(key, tuple(peaks), least)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, to_json(result))
    except OSError as error:
        raise UserError(f"{kept}: cannot be written: {error.strerror}") from error
    return result


def section(result: Widths) -> Section:
    """Show the exponents, whether a power fits at all, and whether the peaks grow and sharpen."""
    findings = [_exponent_sentence(exponent) for exponent in result.exponents if exponent.where == ALL_HEADS]
    findings += [_growth_sentence(growth) for growth in result.growth]
    if result.least_losses:
        temperatures = sorted(least.temperature for least in result.least_losses)
        findings.append(
            f"The loss is least at T between {shown(temperatures[0])} and {shown(temperatures[-1])} over "
            f"{len(temperatures)} models (on the grid of the scan, T applied in every layer)."
        )
    findings.append(
        f"T_0 is at width {PAPER_WIDTH}, an extrapolation beyond {max(p.width for p in result.peaks)}. Heads without a "
        "peak inside the scan are left out, so that T_c is biased towards its middle where they are many."
    )
    exponent_table = table(
        ("scan", "T_c by", "k", "α", "95 % interval", f"T_0 at {PAPER_WIDTH}", "models", "heads without a peak",
         "lack of fit, p", "low", "high"),
        [(*e.words, e.where, e.alpha, interval_text(*e.interval), e.temperature, e.models, e.without_peak,
          e.lack_of_fit, *e.interval) for e in result.exponents],
    )  # fmt: skip
    growth_table = table(
        ("scan", "peak of", "height ∝ d^", "width in log T ∝ d^", "verdict", "power of the height", "its low",
         "its high", "power of the width", "low", "high"),
        [(SCANS[g.kind], g.of.replace("_", " "),
          *(f"{shown(power.slope)} {interval_text(*power.interval)}" for power in (g.sizes.height, g.sizes.width)),
          g.sizes.verdict, g.sizes.height.slope, *g.sizes.height.interval, g.sizes.width.slope,
          *g.sizes.width.interval) for g in result.growth if g.sizes is not None],
    )  # fmt: skip
    loss_table = table(
        ("width", "seed", "T of the least loss", "loss there, nats/token"),
        [(least.width, least.seed, least.temperature, least.loss) for least in result.least_losses],
    )
    tables = (exponent_table, growth_table, loss_table)
    data = table(
        ("width", "seed", "scan", "peak of", "layer", "head", "T", "height", "width in log T"),
        [(p.width, p.seed, p.kind, p.of, p.layer, p.head, p.temperature, p.height, p.half_width) for p in result.peaks],
    )
    places = [(kind, of) for kind in KINDS for of in PEAKS]
    panels = [(f"T_c by {SYMBOLS[of]}, {SCANS[kind]}", _by_layer(result, kind, of)) for kind, of in places]
    heights = [
        (f"height of {SYMBOLS[of]}'s peak, {SCANS[kind]}",
         _points("mean over heads", [p for p in result.peaks if (p.kind, p.of) == (kind, of)], "height"))
        for kind, of in places
    ]  # fmt: skip
    panels, heights = ([panel for panel in drawn if panel[1]] for drawn in (panels, heights))
    title = "Widths (claim K1)"
    if not panels:
        findings.append("No head of any model has a peak inside the scan: nothing can be drawn.")
        return Section("widths", title, tuple(findings), tables)
    pictures = (
        Picture(
            "widths", "Geometric mean of T_c over heads, a point for every model, by layer, with the fitted powers. "
            "The claim is one falling straight line for each k.", data, figures.powers(panels, x_label="width d"),
        ),
        Picture(
            "widths_heights", "Height of the peaks over the width: a transition's would grow with the system, and its "
            "width in log T shrink.", data, figures.powers(heights, x_label="width d"),
        ),
    )  # fmt: skip
    return Section("widths", title, tuple(findings), tables, (), pictures)


def _exponent_sentence(found: Exponent) -> str:
    sign = "falls" if found.interval[0] > 0 else "rises" if found.interval[1] < 0 else "does not surely change"
    fit = (
        ""
        if found.lack_of_fit is None
        else f"; a power of the width is {'not refuted' if found.is_power else 'refuted'} against the spread "
        f"over seeds (p = {shown(found.lack_of_fit, 2)})"
    )
    scan, of = found.words
    return (
        f"T_c by {of}, {scan}, {sign} with the width: α = {shown(found.alpha)} {interval_text(*found.interval)} over "
        f"{found.models} models, {found.without_peak:.0%} of heads without a peak{fit}."
    )


def _growth_sentence(growth: Growth) -> str:
    start, found = f"Peaks of the {growth.of.replace('_', ' ')}, {SCANS[growth.kind]}, over widths:", growth.sizes
    if found is None:
        return f"{start} at fewer than three widths, nothing can be said."
    return (
        f"{start} {found.verdict}: height ∝ d^{shown(found.height.slope)} {interval_text(*found.height.interval)}, "
        f"width in log T ∝ d^{shown(found.width.slope)} {interval_text(*found.width.interval)}."
    )


def _by_layer(result: Widths, kind: ScanKind, of: PeakOf) -> list[Points]:
    found = []
    for layer in sorted({peak.layer for peak in result.peaks}):
        fits = [e for e in result.exponents if (e.kind, e.of, e.where) == (kind, of, f"layer {layer}")]
        power = (fits[0].temperature * PAPER_WIDTH ** fits[0].alpha, -fits[0].alpha) if fits else None
        mine = [p for p in result.peaks if (p.kind, p.of, p.layer) == (kind, of, layer)]
        found += _points(f"layer {layer}", mine, "temperature", power)
    return found


def _points(label: str, peaks: Sequence[HeadPeak], name: str, power: tuple[float, float] | None = None) -> list[Points]:
    """Return the geometric mean over heads of every model; empty without any."""
    models: dict[tuple[int, int], list[float]] = {}
    for peak in peaks:
        value = getattr(peak, name)
        if value is not None and value > 0:
            models.setdefault((peak.width, peak.seed), []).append(value)
    widths = np.array([float(width) for width, _ in models])
    means = np.array([np.exp(np.mean(np.log(values))) for values in models.values()])
    return [Points(label, widths, means, power)] if models else []


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Judge α of all heads together, for both scans and both observables, Holm-adjusted over all families of models."""
    asked = [(analysed, analysed.result("widths", Widths)) for analysed in analyses if "widths" in analysed.results]
    every = [(analysed, exponent) for analysed, result in asked for exponent in result.exponents]
    judged = [(analysed, exponent) for analysed, exponent in every if exponent.where == ALL_HEADS]
    rule = one_sided("above", INDIFFERENCE)
    findings = []
    for (analysed, exponent), d in zip(judged, adjusted([_fit(e) for _, e in judged]), strict=True):
        # With few seeds a family that goes the other way is still a counterexample: only support is barred.
        decided = rule(d, exponent.is_power and _has_seeds(analysed))
        scan, of = exponent.words
        findings.append(
            Finding(
                "K1", study, f"α of T_c by {of}, {scan}", analysed.where, Estimate(d.mean, *d.interval), "", d.count,
                decided, known(d.p_value), _note(analysed, exponent), analysed.runs,
            )
        )  # fmt: skip
    tables = [_exponent_table(judged, findings)] if judged else []
    for analysed, _ in asked:
        if all(other is not analysed for other, _ in judged):
            note = "not measured: no scan has peaks at three widths"
            findings.append(
                Finding("K1", study, "α of T_c", analysed.where, Estimate(math.nan), "", 0, "inconclusive", None, note,
                        analysed.runs)
            )  # fmt: skip
    if places := [(analysed, exponent) for analysed, exponent in every if exponent.where != ALL_HEADS]:
        tables.append(_place_table(places))
    grown = [(analysed, g, g.sizes) for analysed, result in asked for g in result.growth if g.sizes is not None]
    if grown:
        rows: list[tuple[Cell, ...]] = [
            (analysed.where, SCANS[g.kind], g.of.replace("_", " "),
             Estimate(sizes.height.slope, *sizes.height.interval), Estimate(sizes.width.slope, *sizes.width.interval),
             sizes.verdict)
            for analysed, g, sizes in grown
        ]  # fmt: skip
        caption = (
            "Finite size: a transition's peaks grow and sharpen with the system, a crossover's round off. 95 % t "
            "intervals over widths, not adjusted. Growth alone is no transition: more keys or a larger spread of "
            "scores do it too."
        )
        headings = ("models", "scan", "peak of", "height ∝ d^", "width in log T ∝ d^", "peaks")
        runs = tuple(analysed.runs for analysed, *_ in grown)
        tables.append(StudyTable("peaks_by_width", "Peaks over the width", caption, headings, tuple(rows), runs))
    return findings, tables


def _fit(exponent: Exponent) -> Fit:
    """Return α with the interval of the fit; the degrees of freedom are the models minus the two numbers of a line."""
    return Fit(exponent.alpha, *exponent.interval, exponent.models - 2, exponent.models)


def _has_seeds(analysed: AnalysisResult) -> bool:
    return analysed.seeds is None or analysed.seeds >= LEAST_FOR_A_CLAIM


def _note(analysed: AnalysisResult, found: Exponent) -> str:
    parts = [f"interval of the fit over {found.models} models, Holm-adjusted over the table"]
    if not _has_seeds(analysed):
        parts.append(f"{analysed.seeds} seeds of each: it can be refuted, not supported")
    if found.lack_of_fit is not None:
        outcome, then = ("not refuted", "") if found.is_power else ("refuted", ", which bars support")
        against = f"against the spread over seeds (p = {found.lack_of_fit:.2g})"
        parts.append(f"a power of the width is {outcome} {against}{then}")
    if found.without_peak > 0:
        parts.append(f"{found.without_peak:.0%} of heads have no peak and are left out")
    for growth in analysed.result("widths", Widths).growth:
        if (growth.kind, growth.of) == (found.kind, found.of) and growth.sizes is not None:
            parts.append(f"peaks over widths: {growth.sizes.verdict}")
    return "; ".join(parts)


def _exponent_table(judged: Sequence[tuple[AnalysisResult, Exponent]], findings: Sequence[Finding]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (
            analysed.where, *exponent.words, finding.estimate, finding.p_value, Badge(finding.verdict),
            exponent.temperature, finding.count, exponent.lack_of_fit,
        )
        for (analysed, exponent), finding in zip(judged, findings, strict=True)
    ]  # fmt: skip
    caption = (
        "T_c = T_0 (d/768)^(−α), least squares of the logarithms over models, geometric mean over heads. Intervals are "
        "those of the fits, Holm-adjusted over the rows; the claim is α > 0. T_0 is at width 768, an extrapolation "
        "from narrower models. Lack of fit: p of the F test that the misses of the line are no larger than the spread "
        "over seeds; below 0.05 it is no power of the width, which bars the verdict supported."
    )
    headings = ("models", "scan", "T_c by the peak of", "α", "p", "verdict", "T_0", "count", "lack of fit, p")
    runs = tuple(analysed.runs for analysed, _ in judged)
    return StudyTable("widths", "Critical temperature over the width", caption, headings, tuple(rows), runs)


def _place_table(places: Sequence[tuple[AnalysisResult, Exponent]]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (analysed.where, *e.words, e.where, Estimate(d.mean, *d.interval), d.count, e.lack_of_fit)
        for (analysed, e), d in zip(places, adjusted([_fit(e) for _, e in places]), strict=True)
    ]
    headings = ("models", "scan", "T_c by the peak of", "k", "α_k", "count", "lack of fit, p")
    caption = (
        "What k is the paper leaves open. Here: a layer, or a rank (the heads of a layer in the order of their T_c). "
        "Intervals are Holm-adjusted over the rows; no verdict was declared for single k."
    )
    runs = tuple(analysed.runs for analysed, _ in places)
    return StudyTable("widths_by_place", "α by layer and rank", caption, headings, tuple(rows), runs)


WIDTHS = Question(Widths, measure, section, have_widths)
