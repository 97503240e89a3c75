"""The pictures of a reproduction: what was found of every claim, and performance profiles of arms."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from natattn.analysis.pictures.figures import COLOURS, drawn
from natattn.analysis.sections.section import Cell, Picture, table
from natattn.reproduce.cells import estimate_text
from natattn.reproduce.claims import CLAIMED_VALUES, Claim
from natattn.reproduce.ledger import by_claim, standardised, strongest
from natattn.reproduce.results import Finding, StudyResult, overall
from natattn.reproduce.tables import NOT_MEASURED
from natattn.statistics import Verdict
from natattn.targets import LARGEST_RATIO, performance_profile, profile_area

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FARTHEST = 6.0  # half-widths of an interval from what is claimed; beyond, an arrow
_ROW_INCHES = 0.33
_STATEMENT = 58  # characters of a line
_MOST_SPREAD = 0.62  # of a row's height that its findings are spread over
_FAINT = "#6b6b6b"


@dataclass(frozen=True)
class _Look:
    """Of a verdict: colour, marker and filling all differ, so that each tells it alone."""

    colour: str
    marker: str
    is_filled: bool
    is_bold: bool


_LOOKS: Mapping[Verdict, _Look] = {
    "supported": _Look("#0072B2", "o", True, True),
    "refuted": _Look("#A23B00", "X", True, True),
    "no effect": _Look("#4d4d4d", "s", True, False),
    "inconclusive": _Look("#6b6b6b", "D", False, False),
}


def ledger_figure(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> Picture:
    """A forest of all findings, a row for each claim: effects in half-widths of their intervals, and the verdict.

    Raises: ValueError for a finding of a claim that is not among ``claims``.
    """
    rows = by_claim(results, claims)

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for place, (claim, findings) in enumerate(rows):
            _draw_claim(panel, place, claim, findings)
        _set_axes(panel, len(rows))
        _add_legend(figure)

    headings = ("claim", "statement", "what", "where", "effect", "low", "high", "unit", "n", "half-widths", "verdict")
    numbers: list[list[Cell]] = []
    for claim, findings in rows:
        for f in findings:
            numbers.append([
                claim.id, claim.statement, f.what, f.where, f.estimate.value, f.estimate.low, f.estimate.high, f.unit,
                f.count, standardised(f), f.verdict,
            ])  # fmt: skip
        if not findings:
            numbers.append([claim.id, claim.statement, *(None,) * (len(headings) - 3), NOT_MEASURED])
    others = ", ".join(f"{claim}: {value:g}" for claim, value in CLAIMED_VALUES.items() if claim in claims)
    caption = (
        "Each mark is a measurement: its effect in half-widths of the interval that its verdict belongs to, so that "
        "effects of every unit stand side by side and a bar that does not reach the line excludes it. The line is zero"
        + (f", or the value that is claimed ({others})" if others else "")
        + ". On which side an effect has to be depends on the claim. Right: the verdict of all measurements and the "
        "strongest of them."
    )
    return Picture("ledger", caption, table(headings, numbers), drawn(draw, (10.4, 1.2 + _ROW_INCHES * len(rows))))


def _draw_claim(panel: "Axes", place: int, claim: Claim, findings: Sequence[Finding]) -> None:
    if place % 2:
        panel.axhspan(place - 0.5, place + 0.5, color="#f4f4f2", linewidth=0, zorder=0)
    ink = "#000000" if findings else _FAINT
    panel.annotate(claim.id, (0, place), (-318, 0), ("axes fraction", "data"), textcoords="offset points", va="center",
                   fontsize=8, fontweight="bold", color=ink, annotation_clip=False)  # fmt: skip
    lines = textwrap.wrap(claim.statement, _STATEMENT, max_lines=2, placeholder=" …")
    panel.annotate("\n".join(lines), (0, place), (-288, 0), ("axes fraction", "data"), textcoords="offset points",
                   va="center", fontsize=7.5, color=ink, linespacing=0.95, annotation_clip=False)  # fmt: skip
    spread = np.linspace(-_MOST_SPREAD / 2, _MOST_SPREAD / 2, len(findings)) if len(findings) > 1 else [0.0]
    for finding, offset in zip(findings, spread, strict=False):
        _draw_finding(panel, place + float(offset), finding, small=len(findings) > 3)
    _write_verdict(panel, place, findings)


def _draw_finding(panel: "Axes", height: float, finding: Finding, *, small: bool) -> None:
    """The mark with its interval, cut at the edges of the axis; an arrow there for what is beyond."""
    look, centre = _LOOKS[finding.verdict], standardised(finding)
    if math.isnan(centre):
        return
    scale = finding.estimate.value - CLAIMED_VALUES.get(finding.claim, 0.0)
    unit = scale / centre if centre else 1.0
    low, high = (
        centre + (bound - finding.estimate.value) / unit for bound in (finding.estimate.low, finding.estimate.high)
    )
    shown = float(np.clip(centre, -FARTHEST, FARTHEST))
    if shown == centre:
        ends = [-FARTHEST if math.isnan(low) else max(low, -FARTHEST), FARTHEST if math.isnan(high) else high]
        panel.plot(np.clip(ends, -FARTHEST, FARTHEST), [height, height], color=look.colour, linewidth=1.0, zorder=2)
    else:
        tip = math.copysign(FARTHEST + 0.55, centre)
        panel.annotate("", (tip, height), (shown, height), annotation_clip=False,
                       arrowprops={"arrowstyle": "-|>", "color": look.colour, "lw": 1.0, "shrinkA": 0, "shrinkB": 0,
                                   "mutation_scale": 7})  # fmt: skip
    panel.plot(shown, height, linestyle="none", markersize=4.0 if small else 5.5, zorder=3, **_marker(look))


def _marker(look: _Look) -> dict[str, Any]:
    return {"marker": look.marker, "color": look.colour, "markeredgewidth": 0.9,
            "markerfacecolor": look.colour if look.is_filled else "#ffffff"}  # fmt: skip


def _write_verdict(panel: "Axes", place: int, findings: Sequence[Finding]) -> None:
    right: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 7.5,
        "annotation_clip": False,
    }  # fmt: skip
    if not findings:
        panel.annotate(NOT_MEASURED, (1, place), (28, 0), color=_FAINT, **right)
        return
    verdict = overall(findings)
    look, first = _LOOKS[verdict], strongest(findings)
    panel.plot(1.045, place, linestyle="none", markersize=6, clip_on=False, transform=panel.get_yaxis_transform(),
               **_marker(look))  # fmt: skip
    weight = "bold" if look.is_bold else "normal"
    panel.annotate(verdict, (1, place), (28, 0), color=look.colour, fontweight=weight, **right)
    unknown = math.isnan(first.estimate.value)
    effect = "no value" if unknown else f"{estimate_text(first.estimate)} {first.unit}".rstrip()
    more = f"  (1 of {len(findings)})" if len(findings) > 1 else ""
    panel.annotate(effect + more, (1, place), (92, 0), color="#000000", **right)


def _set_axes(panel: "Axes", count: int) -> None:
    panel.axvline(0, color="#555555", linewidth=0.9, zorder=1)
    panel.set(xlim=(-FARTHEST - 0.6, FARTHEST + 0.6), ylim=(count - 0.5, -0.5), yticks=[])
    panel.set_xticks(range(-int(FARTHEST), int(FARTHEST) + 1, 2))
    panel.set_xlabel("effect in half-widths of its interval (an arrow: farther)", fontsize=8)
    panel.tick_params(axis="x", labelsize=7.5)
    panel.spines["left"].set_visible(False)
    panel.grid(False, axis="y")


def _add_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", markersize=6, label=name, **_marker(x)) for name, x in _LOOKS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8,
                  handletextpad=0.2)  # fmt: skip


def profile_figure(
    times: Mapping[str, Sequence[float]], *, name: str = "profile", largest: float = LARGEST_RATIO
) -> Picture:
    """Performance profiles: over r, the share of workloads that an arm needs at most r times the best arm's time for.

    Args:
        times: as ``natattn.targets.performance_profile`` takes them; the legend is in the order of the scores.
        largest: r up to which it is drawn and scored.

    Raises: ValueError as there.
    """
    areas = profile_area(times, largest)
    ratios = np.geomspace(1, largest, 301)
    shares = performance_profile(times, ratios)
    order = sorted(times, key=lambda arm: -areas[arm])
    count = len(times[order[0]])

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for place, arm in enumerate(order):
            # Arms that agree would hide each other: each is drawn a little above the one before.
            lift = 0.004 * (place - (len(order) - 1) / 2)
            panel.plot(
                ratios, shares[arm] + lift, drawstyle="steps-post", label=f"{arm}  ({areas[arm]:.2f})", linewidth=1.5,
                color=COLOURS[place % len(COLOURS)], linestyle=("-", "--", "-.", ":")[place % 4],
            )  # fmt: skip
        panel.set(xlim=(1, largest), ylim=(-0.03, 1.03), xlabel="time over the best arm's, r",
                  ylabel=f"share of {count} workloads reached within r")  # fmt: skip
        figure.legend(title="arm (score)", loc="outside right upper", fontsize=8, title_fontsize=8, frameon=False)

    caption = (
        f"Performance profiles (Dolan and Moré 2002) over {count} workloads. A target that was not reached counts for "
        f"no r. Score: the mean of the curve over 1 ≤ r ≤ {largest:g}."
    )
    numbers = [[float(r), *(float(shares[arm][i]) for arm in order)] for i, r in enumerate(ratios)]
    return Picture(name, caption, table(("r", *order), numbers), drawn(draw, (6.4, 3.4)))
