"""The section about claim K1, from models of several widths."""

from collections.abc import Mapping, Sequence

import numpy as np

from natattn.analysis.criticality import PEAKS, FiniteSize, PeakOf
from natattn.analysis.pictures import run_figures
from natattn.analysis.pictures.run_figures import Points
from natattn.analysis.run_set import RunSet
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.temperature_scan import ScanKind
from natattn.analysis.widths import KINDS, PAPER_WIDTH, Exponent, HeadPeak, WidthStudy, check_widths, study_widths
from natattn.errors import UserError
from natattn.report.section import Advance, Cell, Picture, Section, Table, interval_text, shown, table

SYMBOLS: Mapping[PeakOf, str] = {"heat_capacity": "C", "susceptibility": "χ"}
TITLE = "Widths (claim K1)"
SCANS = {"frozen": "scores frozen", "propagated": "T in every layer"}


def have_widths(runs: RunSet) -> bool:
    """At least three widths, one kind of runs each, whose models are still there."""
    try:
        treatments = check_widths(runs)
    except UserError:
        return False
    return all((run.folder / "arms" / arm.name / "model").is_dir() for t in treatments.values() for run, arm in t.runs)


def widths_section(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Section:
    """T_c over widths: exponents, whether a power fits at all, and whether the peaks grow and sharpen."""
    study = study_widths(runs, settings, advance)
    whole = [exponent for exponent in study.exponents if exponent.where == "all heads"]
    findings = [_of_exponent(exponent) for exponent in whole]
    findings += [_of_sizes(kind, of, found) for (kind, of), found in study.sizes.items()]
    if study.best:
        findings.append(_of_best(study.best))
    findings.append(
        f"T_0 is at width {PAPER_WIDTH}, an extrapolation beyond {max(p.width for p in study.peaks)}. Heads without a "
        "peak inside the scan are left out, so that T_c is biased towards its middle where they are many."
    )
    tables = (_exponent_table(study.exponents), _size_table(study.sizes), _best_table(study.best))
    caption = (
        "Geometric mean of T_c over heads, a point for every model, by layer, with the fitted powers. "
        "The claim is one falling straight line for each k."
    )
    panels = [(f"T_c by {SYMBOLS[of]}, {SCANS[kind]}", _by_layer(study, kind, of)) for kind in KINDS
              for of in PEAKS]  # fmt: skip
    heights = [(f"height of {SYMBOLS[of]}'s peak, {SCANS[kind]}", _heights(study, kind, of))
               for kind in KINDS for of in PEAKS]  # fmt: skip
    data = _peak_table(study.peaks)
    panels, heights = ([panel for panel in drawn if panel[1]] for drawn in (panels, heights))
    if not panels:
        findings.append("No head of any model has a peak inside the scan: nothing can be drawn.")
        return Section("widths", TITLE, tuple(findings), tables)
    pictures = (
        Picture("widths", caption, data, run_figures.powers(panels, x_label="width d")),
        Picture(
            "widths_heights", "Height of the peaks over the width: a transition's would grow with the system, and its "
            "width in log T shrink.", data,
            run_figures.powers(heights, x_label="width d"),
        ),
    )  # fmt: skip
    return Section("widths", TITLE, tuple(findings), tables, (), pictures)


def _by_layer(study: WidthStudy, kind: str, of: str) -> list[Points]:
    found = []
    for layer in sorted({peak.layer for peak in study.peaks}):
        mine = [p for p in study.peaks if (p.kind, p.of, p.layer) == (kind, of, layer)]
        x, y = _means(mine, "temperature")
        fitted = next((e for e in study.exponents if (e.kind, e.of, e.where) == (kind, of, f"layer {layer}")), None)
        power = None if fitted is None else (fitted.temperature * PAPER_WIDTH**fitted.alpha, -fitted.alpha)
        found.append(Points(f"layer {layer}", x, y, power))
    return [points for points in found if len(points.x)]


def _heights(study: WidthStudy, kind: str, of: str) -> list[Points]:
    mine = [p for p in study.peaks if (p.kind, p.of) == (kind, of)]
    x, y = _means(mine, "height")
    return [Points("mean over heads", x, y, None)] if len(x) else []


def _means(peaks: Sequence[HeadPeak], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Geometric means over heads, of every model."""
    models: dict[tuple[int, int], list[float]] = {}
    for peak in peaks:
        value = getattr(peak, name)
        if value is not None and value > 0:
            models.setdefault((peak.width, peak.seed), []).append(value)
    widths = np.array([float(width) for width, _ in models])
    return widths, np.array([np.exp(np.mean(np.log(values))) for values in models.values()])


def _of_exponent(found: Exponent) -> str:
    sign = "falls" if found.interval[0] > 0 else "rises" if found.interval[1] < 0 else "does not surely change"
    fit = (
        ""
        if found.lack_of_fit is None
        else f"; a power of the width is {'refuted' if found.lack_of_fit < 0.05 else 'not refuted'} against the spread "
        f"over seeds (p = {shown(found.lack_of_fit, 2)})"
    )
    return (
        f"T_c by {found.of.replace('_', ' ')}, {SCANS[found.kind]}, {sign} with the width: α = {shown(found.alpha)} "
        f"{interval_text(*found.interval)} over {found.models} models, {found.without_peak:.0%} of heads without a "
        f"peak{fit}."
    )


def _of_sizes(kind: str, of: str, found: FiniteSize | None) -> str:
    start = f"Peaks of the {of.replace('_', ' ')}, {SCANS[kind]}, over widths:"
    if found is None:
        return f"{start} at fewer than three widths, nothing can be said."
    return (
        f"{start} {found.verdict}: height ∝ d^{shown(found.height.slope)} {interval_text(*found.height.interval)}, "
        f"width in log T ∝ d^{shown(found.width.slope)} {interval_text(*found.width.interval)}."
    )


def _of_best(best: Sequence[tuple[int, int, float, float]]) -> str:
    temperatures = sorted(temperature for _, _, temperature, _ in best)
    return (
        f"The loss is least at T between {shown(temperatures[0])} and {shown(temperatures[-1])} over {len(best)} "
        "models (on the grid of the scan, T applied in every layer)."
    )


def _exponent_table(found: Sequence[Exponent]) -> Table:
    headings = ("scan", "T_c by", "k", "α", "95 % interval", f"T_0 at {PAPER_WIDTH}", "models", "heads without a peak",
                "lack of fit, p", "low", "high")  # fmt: skip
    rows: list[list[Cell]] = [
        [
            SCANS[e.kind], e.of.replace("_", " "), e.where, e.alpha, interval_text(*e.interval), e.temperature,
            e.models, e.without_peak, e.lack_of_fit, *e.interval,
        ]
        for e in found
    ]  # fmt: skip
    return table(headings, rows)


def _size_table(sizes: Mapping[tuple[ScanKind, PeakOf], FiniteSize | None]) -> Table:
    rows: list[list[Cell]] = []
    for (kind, of), found in sizes.items():
        if found is not None:
            powers = [f"{shown(p.slope)} {interval_text(*p.interval)}" for p in (found.height, found.width)]
            exact = [number for p in (found.height, found.width) for number in (p.slope, *p.interval)]
            rows.append([SCANS[kind], of.replace("_", " "), *powers, found.verdict, *exact])
    headings = ("scan", "peak of", "height ∝ d^", "width in log T ∝ d^", "verdict", "power of the height", "its low",
                "its high", "power of the width", "low", "high")  # fmt: skip
    return table(headings, rows)


def _best_table(best: Sequence[tuple[int, int, float, float]]) -> Table:
    return table(("width", "seed", "T of the least loss", "loss there, nats/token"), best)


def _peak_table(peaks: Sequence[HeadPeak]) -> Table:
    headings = ("width", "seed", "scan", "peak of", "layer", "head", "T", "height", "width in log T")
    return table(headings, [
        (p.width, p.seed, p.kind, p.of, p.layer, p.head, p.temperature, p.height, p.half_width) for p in peaks
    ])  # fmt: skip
