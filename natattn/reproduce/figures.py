"""Figures of a reproduction: the claims ledger, differences between arms, and performance profiles."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from natattn.report.figures import COLOURS, MARKERS, drawn
from natattn.report.section import Picture, table
from natattn.report.table import Cell, Finding, Table, estimate_text, half_width
from natattn.reproduce.claims import Claim
from natattn.reproduce.ledger import NOT_MEASURED, Comparison, by_claim, standardised, strongest, tally
from natattn.reproduce.plan import Plan, Trials
from natattn.reproduce.results import StudyResult, overall
from natattn.reproduce.study_tables import steps_to_target, targets_of, unit_of_corpus
from natattn.statistics.paired import Verdict, bootstrap_interval
from natattn.statistics.profiles import LARGEST_RATIO, performance_profile, profile_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FARTHEST = 6.0  # limit of the ledger's axis, in half-widths; an arrow marks effects beyond it
_ROW_INCHES = 0.33
_TALLEST = 2.5  # largest height of a claim with many findings, in rows
_FINDING = 0.2  # height of a finding, in rows
_STATEMENT = 64  # characters per line
_FAINT = "#595959"
# Left edges of the text columns next to the panel, in points from its left and its right edge.
_LEFT = {"id": -300, "statement": -270}
_RIGHT = {"mark": 18, "verdict": 28, "effect": 92}


@dataclass(frozen=True)
class _Look:
    """The look of a verdict: colour, marker and filling all differ, so that any one of them identifies it."""

    colour: str
    marker: str
    is_filled: bool
    is_bold: bool


_TICKS = (-1.0, -0.3, -0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the axis of differences
_LOOKS: Mapping[Verdict, _Look] = {
    "supported": _Look("#0072B2", "o", True, True),
    "refuted": _Look("#A23B00", "X", True, True),
    "no effect": _Look("#4d4d4d", "s", True, False),
    "inconclusive": _Look("#6b6b6b", "D", False, False),
}


def ledger_figure(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> Picture:
    """Return a forest plot of all findings, one row per claim: effects in half-widths of their intervals, and verdicts.

    Raises: ValueError for a finding whose claim is not in ``claims``.
    """
    rows = by_claim(results, claims)
    heights = [min(_TALLEST, max(1.0, _FINDING * len(findings))) for _, findings in rows]
    places = np.cumsum(heights) - np.asarray(heights) / 2

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for (claim, findings), place, height in zip(rows, places, heights, strict=True):
            _write_claim(panel, place, claim, bool(findings))
            offsets = (np.arange(len(findings)) + 0.5) / max(1, len(findings)) - 0.5
            for finding, offset in zip(findings, offsets, strict=True):
                _draw_finding(panel, place + 0.85 * height * float(offset), finding, small=len(findings) > 3)
            _write_verdict(panel, place, findings)
        for place, height in list(zip(places, heights, strict=True))[1::2]:
            # The stripe spans the page, to lead the eye from the claim to its verdict.
            stripe = panel.axhspan(place - height / 2, place + height / 2, xmin=-3, xmax=4, color="#f3f3f0",
                                   linewidth=0, zorder=0, clip_on=False)  # fmt: skip
            stripe.set_in_layout(False)
        _set_axes(panel, sum(heights))
        _add_legend(figure)

    others = ", ".join(
        dict.fromkeys(f"{claim.id}: {f.against:g}" for claim, findings in rows for f in findings if f.against)
    )
    caption = (
        "Each mark is a measurement: its effect in half-widths of the interval that its verdict belongs to, so that "
        "effects of every unit stand side by side and a bar that does not reach the line excludes it; an arrow is "
        f"beyond {FARTHEST:g}. The line is zero"
        + (f", or the value that is claimed ({others})" if others else "")
        + ". On which side an effect has to be depends on the claim. Right: the verdict of all measurements and the "
        "strongest of them."
    )
    size = 10.4, 1.3 + _ROW_INCHES * sum(heights)
    return Picture("ledger", caption, _numbers(rows), drawn(draw, size))


def _numbers(rows: Sequence[tuple[Claim, Sequence[Finding]]]) -> Table:
    """The data of the ledger's figure."""
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
    return table(headings, numbers)


def _write_claim(panel: "Axes", place: float, claim: Claim, is_measured: bool) -> None:
    ink = "#000000" if is_measured else _FAINT
    lines = textwrap.wrap(claim.statement, _STATEMENT, max_lines=2, placeholder=" …")
    _beside(panel, _LEFT["id"], place, claim.id, color=ink, fontsize=8, fontweight="bold")
    _beside(panel, _LEFT["statement"], place, "\n".join(lines), color=ink)


def _beside(panel: "Axes", points: float, place: float, text: str, **options: Any) -> None:
    """Write text ``points`` to the left (below zero) or right of the panel."""
    style: dict[str, Any] = {"fontsize": 7.5, "va": "center", "annotation_clip": False}
    panel.annotate(text, (float(points > 0), place), (points, 0), ("axes fraction", "data"),
                   textcoords="offset points", **(style | options))  # fmt: skip


def _draw_finding(panel: "Axes", height: float, finding: Finding, *, small: bool) -> None:
    """Draw a mark with its interval, clipped to the axis; an arrow if the mark itself is beyond."""
    look, centre, estimate = _LOOKS[finding.verdict], standardised(finding), finding.estimate
    if math.isnan(centre):
        return
    unit = half_width(estimate)
    low, high = (centre + (bound - estimate.value) / unit for bound in (estimate.low, estimate.high))
    shown = float(np.clip(centre, -FARTHEST, FARTHEST))
    if shown == centre:
        # A one-sided interval extends to the edge of the axis.
        ends = np.clip([-FARTHEST if math.isnan(low) else low, FARTHEST if math.isnan(high) else high],
                       -FARTHEST, FARTHEST)  # fmt: skip
        panel.plot(ends, [height, height], color=look.colour, linewidth=1.0, zorder=2)
    else:
        tip = math.copysign(FARTHEST + 0.55, centre)
        panel.annotate("", (tip, height), (shown, height), annotation_clip=False,
                       arrowprops={"arrowstyle": "-|>", "color": look.colour, "lw": 1.0, "shrinkA": 0, "shrinkB": 0,
                                   "mutation_scale": 7})  # fmt: skip
    panel.plot(shown, height, linestyle="none", markersize=4.0 if small else 5.5, zorder=3, **_marker(look))


def _marker(look: _Look) -> dict[str, Any]:
    return {"marker": look.marker, "color": look.colour, "markeredgewidth": 0.9,
            "markerfacecolor": look.colour if look.is_filled else "#ffffff"}  # fmt: skip


def _write_verdict(panel: "Axes", place: float, findings: Sequence[Finding]) -> None:
    from matplotlib.transforms import ScaledTranslation

    if not findings:
        _beside(panel, _RIGHT["verdict"], place, NOT_MEASURED, color=_FAINT)
        return
    verdict = overall(findings)
    look, first = _LOOKS[verdict], strongest(findings)
    shift = ScaledTranslation(_RIGHT["mark"] / 72, 0, panel.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]
    panel.plot(1, place, linestyle="none", markersize=6, clip_on=False, transform=panel.get_yaxis_transform() + shift,
               **_marker(look))  # fmt: skip
    weight = "bold" if look.is_bold else "normal"
    _beside(panel, _RIGHT["verdict"], place, verdict, color=look.colour, fontweight=weight)
    if len({finding.verdict for finding in findings}) > 1:
        effect = tally(findings)
    elif math.isnan(first.estimate.value):
        effect = "no value"
    else:
        of_all = f"  (of {len(findings)})" if len(findings) > 1 else ""
        effect = f"{estimate_text(first.estimate)} {first.unit}".rstrip() + of_all
    _beside(panel, _RIGHT["effect"], place, effect)


def _set_axes(panel: "Axes", height: float) -> None:
    panel.axvline(0, color="#555555", linewidth=0.9, zorder=1)
    panel.set(xlim=(-FARTHEST - 0.6, FARTHEST + 0.6), ylim=(height, -0.9), yticks=[])
    panel.set_xticks(range(-int(FARTHEST), int(FARTHEST) + 1, 2))
    panel.set_xlabel("effect less what is claimed (or zero),\nin half-widths of its interval", fontsize=8)
    panel.tick_params(axis="x", labelsize=7.5)
    panel.spines["left"].set_visible(False)
    panel.grid(False, axis="y")
    for points, text in ((_LEFT["id"], "claim"), (_RIGHT["verdict"], "verdict of all"),
                         (_RIGHT["effect"], "the strongest effect, and its interval")):  # fmt: skip
        _beside(panel, points, -0.45, text, color=_FAINT, fontsize=8)


def _add_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", markersize=6, label=name, **_marker(x)) for name, x in _LOOKS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8,
                  handletextpad=0.2)  # fmt: skip


def profile_figure(
    times: Mapping[str, Sequence[float]], *, name: str = "profile", largest: float = LARGEST_RATIO
) -> Picture:
    """Return performance profiles: for each r, the share of workloads solved within r times the best arm's time.

    Args:
        times: the argument of ``performance_profile``. The legend is sorted by score.
        largest: the largest r that is drawn and scored.

    Raises: ValueError if ``performance_profile`` does.
    """
    scores = profile_scores(times, largest)
    areas = {arm: float(of_arm.mean()) for arm, of_arm in scores.items()}
    intervals = {arm: bootstrap_interval(of_arm.tolist()) for arm, of_arm in scores.items()}
    ratios = np.geomspace(1, largest, 301)
    shares = performance_profile(times, ratios)
    order = sorted(times, key=lambda arm: -areas[arm])
    count = len(times[order[0]])

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for place, arm in enumerate(order):
            # Equal curves would hide each other, so each is drawn slightly above the previous one.
            lift = 0.004 * (place - (len(order) - 1) / 2)
            panel.plot(
                ratios, shares[arm] + lift, drawstyle="steps-post", linewidth=1.8,
                label=_score(arm, areas[arm], intervals[arm]), color=COLOURS[place % len(COLOURS)],
                linestyle=("-", "--", "-.", ":")[place % 4],
            )  # fmt: skip
        panel.set(xlim=(1, largest), ylim=(-0.03, 1.03), xlabel="time over the best arm's, r",
                  ylabel=f"share of {count} workloads reached within r")  # fmt: skip
        figure.legend(title="arm (score)", loc="outside right upper", fontsize=8, title_fontsize=8, frameon=False)

    caption = (
        f"Performance profiles (Dolan and Moré 2002) over {count} workloads. A target that was not reached counts for "
        f"no r. Score: the mean of the curve over 1 ≤ r ≤ {largest:g}, "
        "with its bootstrap interval over workloads, which is too narrow for fewer than about ten."
    )
    numbers = [[float(r), *(float(shares[arm][i]) for arm in order)] for i, r in enumerate(ratios)]
    return Picture(name, caption, table(("r", *order), numbers), drawn(draw, (6.4, 3.4)))


def _score(arm: str, area: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{arm}  ({area:.2f})" if math.isnan(low) else f"{arm}  ({area:.2f} [{low:.2f}, {high:.2f}])"


def differences_figure(trials: Trials, plan: Plan, judged: Sequence[Comparison]) -> Picture | None:
    """Return a forest plot of final-loss differences with their intervals, one panel per data set."""
    rows = [row for row in judged if row.comparison.metric == "final_loss" and row.difference.count > 1]
    corpora = list(dict.fromkeys(row.corpus for row in rows))
    if not rows:
        return None
    names = list(dict.fromkeys(f"{row.arm} − {row.other}" for row in rows))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
        for index, (panel, corpus) in enumerate(zip(panels, corpora, strict=True)):
            panel.axvline(0, color="#555555", linewidth=0.9)
            panel.axvspan(-trials.study.indifference, trials.study.indifference, color="#dddddd", linewidth=0)
            for row in (row for row in rows if row.corpus == corpus):
                height, (low, high) = names.index(f"{row.arm} − {row.other}"), row.difference.interval
                panel.plot([low, high], [height, height], color=COLOURS[index % len(COLOURS)])
                panel.plot(
                    row.difference.mean, height, MARKERS[index % len(MARKERS)], color=COLOURS[index % len(COLOURS)]
                )
            panel.set_xscale(
                "symlog", linthresh=2 * trials.study.indifference or 0.02
            )  # outliers would squeeze the rest
            low, high = panel.get_xlim()
            ticks = [tick for tick in _TICKS if low <= tick <= high]
            panel.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
            panel.set_xticks([], minor=True)
            panel.set(title=corpus, xlabel=f"final loss difference, nats/{unit_of_corpus(trials, plan, corpus)}")
        panels[0].set_yticks(range(len(names)), names, fontsize=8)
        panels[0].invert_yaxis()

    data = table(
        ("data", "difference", "mean", "low", "high", "pairs"),
        [
            (r.corpus, f"{r.arm} − {r.other}", r.difference.mean, *r.difference.interval, r.difference.count)
            for r in rows
        ],
    )
    return Picture(
        f"{trials.study.name}_differences",
        "Differences of the last validation loss with Holm-adjusted 95 % intervals; left of zero the first is better. "
        f"Grey: ±δ = {trials.study.indifference:g}.",
        data,
        drawn(draw, (3.2 + 3.2 * len(corpora), 1.2 + 0.26 * len(names))),
    )


def study_profile_figure(trials: Trials, plan: Plan) -> Picture | None:
    """Return performance profiles of steps to the target; None with fewer than two workloads or two arms.

    A workload is a data set with a seed. Placebos are included, since an arm should beat them. A missing run counts as
    one that did not reach the target. An arm without any run on some data set (the study is unfinished) is left out.
    """
    if trials.study.target is None:
        return None
    times: dict[str, list[float]] = {}
    for corpus in trials.study.corpora:
        targets = targets_of(trials, plan, corpus)
        arms = [arm for arm in trials.arms.values() if corpus in arm.corpora]
        members = {arm.name: {run.seed: (run, a) for run, a in trials.finals(plan, corpus, arm.name)} for arm in arms}
        trained = [name for name in members if members[name]]
        for seed in sorted(seed for seed in targets if seed is not None):
            for name in trained:
                member = members[name].get(seed)
                reached = steps_to_target([member], targets).for_profile if member is not None else (math.inf,)
                times.setdefault(name, []).extend(reached)
    most = max((len(of_arm) for of_arm in times.values()), default=0)
    complete = {name: of_arm for name, of_arm in times.items() if len(of_arm) == most}
    return profile_figure(complete, name=f"{trials.study.name}_profile") if most > 1 and len(complete) > 1 else None
