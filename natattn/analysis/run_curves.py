"""The figure of a run: loss curves of its arms, the metric of its task, and the difference between the arms."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.data_facts import DataFacts, data_of, unit_of
from natattn.analysis.runs import read_facts
from natattn.errors import UserError
from natattn.report.figures import GREY, STYLE
from natattn.storage.atomic import replacing
from natattn.tracking.metrics_file import FILE_NAME as METRICS_FILE
from natattn.tracking.metrics_file import Metrics, read_metrics
from natattn.training.run_folder import RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"

Series = tuple[NDArray[Any], NDArray[np.float64]]


@dataclass(frozen=True)
class _Look:
    """The look of an arm: lines of its validation and training losses, and the colour of its text."""

    strong: dict[str, Any]
    thin: dict[str, Any]
    ink: str


# Blues of Okabe and Ito's palette and a darkened version of its vermilion, which are safe for colour blindness. The
# reference is a broad pale line and the candidate a narrow dark one above it, so both show if they agree, and in grey.
_REFERENCE = _Look(
    {"color": "#56B4E9", "linewidth": 5.0}, {"color": "#56B4E9", "linewidth": 1.8, "alpha": 0.6}, "#0072B2"
)
_CANDIDATE = _Look(
    {"color": "#A23B00", "linewidth": 1.6}, {"color": "#A23B00", "linewidth": 0.6, "alpha": 0.8}, "#A23B00"
)
_DASHES = {"unigram entropy": (0, (1, 2)), "bigram model": (0, (5, 2)), "floor": (0, (8, 2, 1, 2)),
           "chance": (0, (5, 2))}  # fmt: skip
# {unit: (validation metric, its label)} of tasks with a panel of their own.
_TASK_PANELS = {"image": ("accuracy", "accuracy"), "pair": ("image_to_text_recall_1", "image → text\nrecall@1")}
_TRAINING_POINTS = 120  # most points of a curve of training losses, which is averaged
_MOST_MARKED = 25  # most evaluations of a curve that get markers
_WARM_UP = 0.1  # share of the run at its start that the limits of the axis ignore


@dataclass(frozen=True)
class _Arm:
    """The curves of one arm: losses in nats, and the share that its task measures (None for language)."""

    name: str
    label: str
    is_reference: bool
    validation: Series
    training: Series
    share: Series | None
    diverged_at: int | None

    @property
    def look(self) -> _Look:
        return _REFERENCE if self.is_reference else _CANDIDATE


def plot_curves(folder: Path) -> Path:
    """Draw ``curves.png`` in a run folder, write its numbers to ``curves.csv``, and return the path of the figure.

    Top panel: losses in nats over steps (validation strong, training thin and averaged) and the levels of the data.
    Below: accuracy or recall if the task measures it, and candidate − reference at each evaluation.

    Raises: UserError if the run has no validation loss yet, or if run.json does not describe a run.
    """
    folder = Path(folder)
    facts, metrics = read_facts(folder), read_metrics(folder / METRICS_FILE)
    try:
        names = sorted(facts["arms"], key=lambda arm: arm != facts["reference"])
        arms = [_read_arm(name, facts, metrics) for name in names]
        data, difference = data_of(facts), _difference(arms, facts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{folder / RUN} does not describe a run: {error}") from error
    if not any(arm.validation[0].size for arm in arms):
        raise UserError(f"{folder} has no validation loss to draw yet")
    contents = {"curves.csv": _as_csv(arms, difference, unit_of(facts)), CURVES: _draw(arms, data, difference, facts)}
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / CURVES


def _read_arm(name: str, facts: dict[str, Any], metrics: Metrics) -> _Arm:
    def finite(metric: str) -> Series:
        steps, values, _ = metrics.select(arm=name, name=metric)
        return steps[np.isfinite(values)], values[np.isfinite(values)]

    diverged, _, _ = metrics.select(arm=name, name="diverged")
    panel = _TASK_PANELS.get(unit_of(facts))
    return _Arm(
        name=name,
        label=f"{name} LEAKY" if name in facts.get("leaky", ()) else name,
        is_reference=name == facts["reference"],
        validation=finite("validation/loss"),
        training=_averaged(*finite("train/loss")),
        share=None if panel is None else finite(f"validation/{panel[0]}"),
        diverged_at=int(diverged[-1]) if diverged.size else None,
    )


def _averaged(steps: NDArray[Any], values: NDArray[np.float64]) -> Series:
    """Means over equal numbers of consecutive steps; the remainder at the end has a mean of its own."""
    length = max(1, math.ceil(len(steps) / _TRAINING_POINTS))
    starts = np.arange(0, len(steps), length)
    if not starts.size:
        return steps, values
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _difference(arms: list[_Arm], facts: dict[str, Any]) -> Series | None:
    """Candidate − reference at the steps where both were evaluated; None without a reference."""
    by_name = {arm.name: arm for arm in arms}
    candidate, reference = by_name.get(facts["candidate"]), by_name.get(facts["reference"])
    if candidate is None or reference is None or candidate is reference:
        return None
    steps, mine, theirs = np.intersect1d(candidate.validation[0], reference.validation[0], return_indices=True)
    return steps, candidate.validation[1][mine] - reference.validation[1][theirs]


def _as_csv(arms: list[_Arm], difference: Series | None, unit: str) -> bytes:
    metric = _TASK_PANELS[unit][0] if unit in _TASK_PANELS else None
    rows: list[tuple[object, ...]] = [("curve", "arm", "step", f"nats_per_{unit}", *([metric] if metric else []))]

    def add(curve: str, arm: str, series: Series, *before: str) -> None:
        rows.extend((curve, arm, f"{step:.10g}", *before, repr(float(v))) for step, v in zip(*series, strict=True))

    for arm in arms:
        add("validation", arm.name, arm.validation)
        add("training_mean", arm.name, arm.training)
        if arm.share is not None:
            add(f"validation_{metric}", arm.name, arm.share, "")
    if difference is not None:
        add("difference", "", difference)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _draw(arms: list[_Arm], data: DataFacts, difference: Series | None, facts: dict[str, Any]) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    unit = unit_of(facts)
    task_panel = _TASK_PANELS.get(unit)
    heights = [*([1.4] if task_panel is not None else []), *([1.0] if difference is not None else [])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.2 + 1.2 * sum(heights)))
        ratios = [3.2, *heights]
        panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        _draw_losses(panels[0], arms, data.levels, unit)
        status = "" if facts.get("status") == "finished" else f" · {facts.get('status')}".replace("_", " ")
        title = f"{facts.get('label', '')} · {facts['data'].get('name', '')} · seed {facts.get('seed')}{status}"
        panels[0].set_title(title, loc="left", fontweight="bold", pad=20)
        levels = "levels of the validation text" if unit == "token" else "chance"
        key = f"strong: validation loss    thin: training loss, averaged    dashed: {levels}"
        panels[0].annotate(key, (0, 1), (0, 6), "axes fraction", textcoords="offset points", color=GREY, fontsize=8)
        if task_panel is not None:
            _draw_shares(panels[1], arms, data.chance[task_panel[0]], task_panel[1])
        if difference is not None:
            _draw_difference(panels[-1], difference, f"{facts['candidate']} −\n{facts['reference']}\nnats/{unit}")
        diverged = [arm.diverged_at for arm in arms if arm.diverged_at is not None]
        panels[-1].set_xlabel("steps")
        panels[-1].set_xlim(0, 1.01 * max(1, *(steps.max() for steps, _ in _loss_curves(arms)), *diverged))
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))
        figure.align_ylabels()
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight")
    return picture.getvalue()


def _loss_curves(arms: list[_Arm]) -> list[Series]:
    return [series for arm in arms for series in (arm.validation, arm.training) if series[0].size]


def _draw_losses(panel: "Axes", arms: list[_Arm], levels: dict[str, float], unit: str) -> None:
    low, high = _limits(arms, levels)
    panel.set_ylim(low, high)
    panel.set_ylabel(f"loss, nats/{unit}")
    labels: list[tuple[float, str, str]] = []
    for arm in arms:
        steps, losses = arm.validation
        panel.plot(*arm.training, **arm.look.thin)
        panel.plot(steps, losses, **arm.look.strong, **_markers(arm.validation, arm.look))
        if arm.diverged_at is not None:
            panel.axvline(arm.diverged_at, color=arm.look.ink, linewidth=1.0, linestyle=":")
            panel.annotate(
                f"{arm.label} diverged\nat step {arm.diverged_at}", (arm.diverged_at, 1), (5, -3),
                ("data", "axes fraction"), textcoords="offset points", va="top", color=arm.look.ink,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        elif losses.size:
            labels.append((float(losses[-1]), f"{arm.label} {losses[-1]:.4f}", arm.look.ink))
    for name, level in levels.items():
        if low <= level <= high:
            panel.axhline(level, linestyle=_DASHES[name], zorder=1.5, color=GREY, linewidth=0.9)
        arrow = "" if low <= level <= high else " ↑" if level > high else " ↓"
        labels.append((level, f"{name} {level:.3f}{arrow}", GREY))
    _label_right(panel, labels)


def _limits(arms: list[_Arm], levels: dict[str, float]) -> tuple[float, float]:
    """Limits of the losses after the initial drop, extended to nearby levels."""
    steady = [arm for arm in arms if arm.diverged_at is None and arm.validation[0].size] or arms
    last = max(int(arm.validation[0][-1]) for arm in steady if arm.validation[0].size)
    curves = _loss_curves(steady)
    seen = np.concatenate([losses[steps >= min(_WARM_UP * last, steps[-1])] for steps, losses in curves])
    low, high = float(seen.min()), float(seen.max())
    reach = max(0.5 * (high - low), 1.0)
    near = [level for level in levels.values() if low - reach <= level <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * max(high - low, 1e-3)
    return low - margin, high + 2 * margin


def _draw_shares(panel: "Axes", arms: list[_Arm], chance: float, name: str) -> None:
    labels: list[tuple[float, str, str]] = []
    for arm in arms:
        assert arm.share is not None
        panel.plot(*arm.share, **arm.look.strong, **_markers(arm.share, arm.look))
        if arm.share[0].size and arm.diverged_at is None:
            labels.append((float(arm.share[1][-1]), f"{100 * arm.share[1][-1]:.1f} %", arm.look.ink))
    panel.axhline(chance, linestyle=_DASHES["chance"], zorder=1.5, color=GREY, linewidth=0.9)
    panel.set_ylim(-0.02, 1.02)
    panel.set_ylabel(name)
    _label_right(panel, [*labels, (chance, f"chance {100 * chance:.1f} %", GREY)], gap=0.16)


def _draw_difference(panel: "Axes", difference: Series, label: str) -> None:
    steps, values = difference
    panel.axhline(0.0, color="#000000", linewidth=0.8)
    panel.plot(steps, values, **_CANDIDATE.strong, **_markers(difference, _CANDIDATE))
    panel.set_ylabel(label)
    panel.margins(y=0.15)
    if values.size:
        panel.annotate(
            f"{values[-1]:+.2g}".replace("-", "−"), (1, values[-1]), (6, 0), ("axes fraction", "data"),
            textcoords="offset points", va="center", color=_CANDIDATE.ink,
        )  # fmt: skip


def _markers(series: Series, look: _Look) -> dict[str, Any]:
    """Options that mark the points of a short curve."""
    few = len(series[0]) <= _MOST_MARKED
    return {"marker": "o", "markersize": look.strong["linewidth"] + 2.5} if few else {}


def _label_right(panel: "Axes", labels: list[tuple[float, str, str]], gap: float = 0.055) -> None:
    """Write (value, text, colour) at the right border, at least ``gap`` of the height apart."""
    if not labels:
        return
    low, high = panel.get_ylim()
    labels = sorted(labels)
    heights = _apart([min(1.0, max(0.0, (level - low) / (high - low))) for level, _, _ in labels], gap)
    for height, (_, text, ink) in zip(heights, labels, strict=True):
        panel.annotate(text, (1, height), (6, 0), "axes fraction", textcoords="offset points", va="center", color=ink)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Sorted heights moved at least ``gap`` apart: up, and then down so that none is above 1."""
    heights = list(heights)
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    return heights
