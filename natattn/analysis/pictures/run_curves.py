"""The picture of a run: loss curves of its arms, and their difference."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.data_facts import DataFacts, data_of, unit_of
from natattn.analysis.pictures.figures import STYLE
from natattn.analysis.runs import read_facts
from natattn.errors import UserError
from natattn.storage.atomic import replacing
from natattn.tracking.metrics_file import FILE_NAME as METRICS_FILE
from natattn.tracking.metrics_file import Metrics, read_metrics
from natattn.training.run_folder import RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"

# Okabe and Ito's blues, and a darkened vermilion of theirs: told apart by every kind of colour vision. The reference is
# a broad pale line and what is compared with it a narrow dark one above: both are seen where they agree, and in grey.
REFERENCE_LINE: dict[str, Any] = {"color": "#56B4E9", "linewidth": 5.0}
REFERENCE_TRAINING_LINE: dict[str, Any] = {"color": "#56B4E9", "linewidth": 1.8, "alpha": 0.6}
REFERENCE_TEXT = "#0072B2"  # the pale blue is too pale for letters
CANDIDATE_LINE: dict[str, Any] = {"color": "#A23B00", "linewidth": 1.6}
CANDIDATE_TRAINING_LINE: dict[str, Any] = {"color": "#A23B00", "linewidth": 0.6, "alpha": 0.8}
CANDIDATE_TEXT = "#A23B00"
LEVEL_LINE: dict[str, Any] = {"color": "#555555", "linewidth": 0.9}
_LEVEL_DASHES = {"unigram entropy": (0, (1, 2)), "bigram model": (0, (5, 2)), "floor": (0, (8, 2, 1, 2))}
_LEVEL_DASHES["chance"] = _LEVEL_DASHES["bigram model"]
# Of each task but language what is drawn beneath the losses: metric of the validation split, and its name.
_DRAWN_METRICS = {"image": ("accuracy", "accuracy"), "pair": ("image_to_text_recall_1", "image → text\nrecall@1")}

# As many points as a curve of training losses is averaged to; as few evaluations as are marked one by one.
_TRAINING_POINTS = 120
_MARKED_EVALUATIONS = 25
# Losses before this part of the run do not stretch the axis.
_WARM_UP_PART = 0.1

Series = tuple[NDArray[Any], NDArray[np.float64]]


@dataclass(frozen=True)
class _Curves:
    """What is drawn of one arm: steps, losses in nats, and of tasks but language a share."""

    name: str
    label: str
    is_reference: bool
    validation: Series
    training: Series
    share: Series | None
    diverged_at: int | None


def plot_curves(folder: Path) -> Path:
    """Draws `curves.png` in the run folder, and writes what it shows to `curves.csv`; returns the picture's path.

    Above, losses in nats over steps: validation (strong), training (thin, averaged), the levels of the data; below,
    accuracy or recall where the task has it, and candidate − reference at each evaluation. Raises UserError where the
    run has no validation loss yet.
    """
    folder = Path(folder)
    facts, metrics = read_facts(folder), read_metrics(folder / METRICS_FILE)
    try:
        arms = [
            _curves(name, facts, metrics) for name in sorted(facts["arms"], key=lambda arm: arm != facts["reference"])
        ]
        data, difference = data_of(facts), _difference(arms, facts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{folder / RUN} does not describe a run: {error}") from error
    if not any(arm.validation[0].size for arm in arms):
        raise UserError(f"{folder} has no validation loss to draw yet")
    _replace(folder / "curves.csv", _as_csv(arms, difference, unit_of(facts)))
    path = folder / CURVES
    _replace(path, _draw(arms, data, difference, facts))
    return path


def _curves(name: str, facts: dict[str, Any], metrics: Metrics) -> _Curves:
    steps, losses, _ = metrics.select(arm=name, name="validation/loss")
    diverged, _, _ = metrics.select(arm=name, name="diverged")
    drawn = _DRAWN_METRICS.get(unit_of(facts))
    return _Curves(
        name=name,
        label=f"{name} LEAKY" if name in facts.get("leaky", ()) else name,
        is_reference=name == facts["reference"],
        validation=_finite(steps, losses),
        training=_averaged(*_finite(*metrics.select(arm=name, name="train/loss")[:2])),
        share=None if drawn is None else _finite(*metrics.select(arm=name, name=f"validation/{drawn[0]}")[:2]),
        diverged_at=int(diverged[-1]) if diverged.size else None,
    )


def _finite(steps: NDArray[Any], values: NDArray[np.float64]) -> Series:
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _averaged(steps: NDArray[Any], values: NDArray[np.float64]) -> Series:
    """Means over equal numbers of consecutive steps; the rest at the end is a mean of its own."""
    length = max(1, math.ceil(len(steps) / _TRAINING_POINTS))
    starts = np.arange(0, len(steps), length)
    if not starts.size:
        return steps, values
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _difference(arms: list[_Curves], facts: dict[str, Any]) -> Series | None:
    """Candidate − reference where both were evaluated; None without a reference."""
    by_name = {arm.name: arm for arm in arms}
    candidate, reference = by_name.get(facts["candidate"]), by_name.get(facts["reference"])
    if candidate is None or reference is None or candidate is reference:
        return None
    steps, mine, theirs = np.intersect1d(candidate.validation[0], reference.validation[0], return_indices=True)
    return steps, candidate.validation[1][mine] - reference.validation[1][theirs]


def _as_csv(arms: list[_Curves], difference: Series | None, unit: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    drawn = _DRAWN_METRICS.get(unit)
    writer.writerow(("curve", "arm", "step", f"nats_per_{unit}", *([drawn[0]] if drawn else [])))
    for arm in arms:
        for curve, series in (("validation", arm.validation), ("training_mean", arm.training)):
            writer.writerows(
                (curve, arm.name, f"{step:g}", repr(float(value))) for step, value in zip(*series, strict=True)
            )
        if arm.share is not None and drawn is not None:
            writer.writerows(
                (f"validation_{drawn[0]}", arm.name, step, "", repr(float(value)))
                for step, value in zip(*arm.share, strict=True)
            )
    if difference is not None:
        writer.writerows(("difference", "", step, repr(float(value))) for step, value in zip(*difference, strict=True))
    return text.getvalue().encode()


def _draw(arms: list[_Curves], data: DataFacts, difference: Series | None, facts: dict[str, Any]) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        unit = unit_of(facts)
        drawn = _DRAWN_METRICS.get(unit)
        further = [*([1.4] if drawn is not None else []), *([1.0] if difference is not None else [])]
        ratios = [3.2, *further] if further else [1]
        figure = Figure(figsize=(8.0, 4.2 + 1.2 * sum(further)))
        panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        _draw_losses(panels[0], arms, data.levels, unit)
        _write_title(panels[0], facts)
        if drawn is not None:
            _draw_shares(panels[1], arms, data.chance[drawn[0]], drawn[1])
        if difference is not None:
            _draw_difference(panels[-1], difference, f"{facts['candidate']} −\n{facts['reference']}", unit)
        panels[-1].set_xlabel("steps")
        panels[-1].set_xlim(0, 1.01 * max(1, *(steps.max() for steps, _ in _series(arms)), *_diverged(arms)))
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))
        figure.align_ylabels()
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight")  # a Figure of its own draws with Agg
    return picture.getvalue()


def _write_title(panel: "Axes", facts: dict[str, Any]) -> None:
    status = "" if facts.get("status") == "finished" else f" · {facts.get('status')}".replace("_", " ")
    panel.set_title(
        f"{facts.get('label', '')} · {facts['data'].get('name', '')} · seed {facts.get('seed')}{status}",
        loc="left", fontweight="bold", pad=20,
    )  # fmt: skip
    levels = "levels of the validation text" if unit_of(facts) == "token" else "chance"
    key = f"strong: validation loss    thin: training loss, averaged    dashed: {levels}"
    panel.annotate(key, (0, 1), (0, 6), "axes fraction", textcoords="offset points", color="#555555", fontsize=8)


def _draw_shares(panel: "Axes", arms: list[_Curves], chance: float, name: str) -> None:
    labels: list[tuple[float, str, str]] = []
    for arm in arms:
        assert arm.share is not None
        strong, color = (REFERENCE_LINE, REFERENCE_TEXT) if arm.is_reference else (CANDIDATE_LINE, CANDIDATE_TEXT)
        panel.plot(*arm.share, **strong, **_markers(arm.share, strong))
        if arm.share[0].size and arm.diverged_at is None:
            labels.append((float(arm.share[1][-1]), f"{100 * arm.share[1][-1]:.1f} %", color))
    panel.axhline(chance, linestyle=_LEVEL_DASHES["chance"], zorder=1.5, **LEVEL_LINE)
    panel.set_ylim(-0.02, 1.02)
    panel.set_ylabel(name)
    _label_right(panel, [*labels, (chance, f"chance {100 * chance:.1f} %", LEVEL_LINE["color"])], gap=0.16)


def _markers(series: Series, line: dict[str, Any]) -> dict[str, Any]:
    return {"marker": "o", "markersize": line["linewidth"] + 2.5} if len(series[0]) <= _MARKED_EVALUATIONS else {}


def _draw_losses(panel: "Axes", arms: list[_Curves], levels: dict[str, float], unit: str) -> None:
    low, high = _limits(arms, levels)
    panel.set_ylim(low, high)
    panel.set_ylabel(f"loss, nats/{unit}")
    labels: list[tuple[float, str, str]] = []
    for arm in arms:
        strong, thin, color = (
            (REFERENCE_LINE, REFERENCE_TRAINING_LINE, REFERENCE_TEXT)
            if arm.is_reference
            else (CANDIDATE_LINE, CANDIDATE_TRAINING_LINE, CANDIDATE_TEXT)
        )
        steps, losses = arm.validation
        panel.plot(*arm.training, **thin)
        panel.plot(steps, losses, **strong, **_markers(arm.validation, strong))
        if arm.diverged_at is not None:
            _mark_divergence(panel, arm.label, arm.diverged_at, color)
        elif losses.size:
            labels.append((float(losses[-1]), f"{arm.label} {losses[-1]:.4f}", color))
    for name, level in levels.items():
        if low <= level <= high:
            panel.axhline(level, linestyle=_LEVEL_DASHES[name], zorder=1.5, **LEVEL_LINE)
        where = "" if low <= level <= high else " ↑" if level > high else " ↓"
        labels.append((level, f"{name} {level:.3f}{where}", LEVEL_LINE["color"]))
    _label_right(panel, labels)


def _mark_divergence(panel: "Axes", label: str, step: int, color: str) -> None:
    panel.axvline(step, color=color, linewidth=1.0, linestyle=":")
    panel.annotate(
        f"{label} diverged\nat step {step}", (step, 1), (5, -3), ("data", "axes fraction"), textcoords="offset points",
        va="top", color=color, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _limits(arms: list[_Curves], levels: dict[str, float]) -> tuple[float, float]:
    """Limits of the losses once the first fall is over, with the levels that are not far from them."""
    steady = [arm for arm in arms if arm.diverged_at is None and arm.validation[0].size] or arms
    last = max(int(arm.validation[0][-1]) for arm in steady if arm.validation[0].size)
    seen = np.concatenate([losses[steps >= min(_WARM_UP_PART * last, steps[-1])] for steps, losses in _series(steady)])
    low, high = float(seen.min()), float(seen.max())
    reach = max(0.5 * (high - low), 1.0)
    near = [level for level in levels.values() if low - reach <= level <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * max(high - low, 1e-3)
    return low - margin, high + 2 * margin


def _series(arms: list[_Curves]) -> list[Series]:
    return [series for arm in arms for series in (arm.validation, arm.training) if series[0].size]


def _diverged(arms: list[_Curves]) -> list[int]:
    return [arm.diverged_at for arm in arms if arm.diverged_at is not None]


def _draw_difference(panel: "Axes", difference: Series, name: str, unit: str) -> None:
    steps, values = difference
    panel.axhline(0.0, color="#000000", linewidth=0.8)
    panel.plot(steps, values, **CANDIDATE_LINE, marker="o" if len(steps) <= _MARKED_EVALUATIONS else None, markersize=4)
    panel.set_ylabel(f"{name}\nnats/{unit}")
    panel.margins(y=0.15)
    if values.size:
        panel.annotate(
            f"{values[-1]:+.2g}".replace("-", "−"), (1, values[-1]), (6, 0), ("axes fraction", "data"),
            textcoords="offset points", va="center", color=CANDIDATE_TEXT,
        )  # fmt: skip


def _label_right(panel: "Axes", labels: list[tuple[float, str, str]], gap: float = 0.055) -> None:
    """Writes each label beside its height at the right border, moved apart where they would overlap."""
    if not labels:
        return
    low, high = panel.get_ylim()
    labels = sorted(labels)
    heights = _apart([min(1.0, max(0.0, (level - low) / (high - low))) for level, _, _ in labels], gap)
    for height, (_, text, color) in zip(heights, labels, strict=True):
        panel.annotate(
            text, (1, height), (6, 0), "axes fraction", textcoords="offset points", va="center", color=color
        )  # fmt: skip


def _apart(heights: list[float], gap: float) -> list[float]:
    """Moves sorted heights at least `gap` apart, up and then down so that none is above 1."""
    heights = list(heights)
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    return heights


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
