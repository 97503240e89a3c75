"""The pictures of several runs: curves with bands, and powers of a size on logarithmic axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.pictures.figures import COLOURS, MARKERS, drawn_panels, set_logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
MARKED_POINTS = 25


@dataclass(frozen=True, eq=False)
class Line:
    """A curve, and the borders of its band (nan for none)."""

    label: str
    x: NDArray[Any]
    y: Floats
    low: Floats
    high: Floats


def bands(panels_data: Sequence[tuple[str, Sequence[Line], Mapping[str, float]]]) -> bytes:
    """Panels of curves with bands, each curve over its own steps, on a logarithmic axis: step 0 is left out.

    Args:
        panels_data: label of the vertical axis, curves, and levels that are drawn across and named.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (label, lines, levels) in zip(panels, panels_data, strict=True):
            for place, line in enumerate(lines):
                _draw_line(panel, line, place)
            _fit(panel, lines)
            low, high = panel.get_ylim()
            for name, level in levels.items():
                if not low <= level <= high:
                    continue  # far from what was reached: it would be a line outside the picture
                panel.axhline(level, color="#555555", linestyle=":", linewidth=0.9)
                panel.annotate(name, (1, level), (-2, 2), ("axes fraction", "data"), textcoords="offset points",
                               ha="right", fontsize=7, color="#555555")  # fmt: skip
            panel.set(xlabel="steps", ylabel=label)
            set_logarithmic(panel, "x")
        panels[0].legend(fontsize=7, frameon=False)

    return drawn_panels(draw, len(panels_data), columns=2, panel=(5.0, 3.0), above=0.4)


def _fit(panel: "Axes", lines: Sequence[Line]) -> None:
    """Limits of the means: a band that is wider than all of them together is cut."""
    seen = np.concatenate([line.y[np.isfinite(line.y) & (line.x > 0)] for line in lines])
    if not len(seen):
        return
    low, high = float(seen.min()), float(seen.max())
    margin = 0.2 * (high - low) or 0.1 * abs(high) or 1.0
    panel.set_ylim(low - margin, high + margin)


def _draw_line(panel: "Axes", line: Line, place: int) -> None:
    kept = line.x > 0
    colour = COLOURS[place % len(COLOURS)]
    style = ("-", "--", "-.", ":")[place // len(COLOURS) % 4]
    marker = MARKERS[place % len(MARKERS)] if kept.sum() <= MARKED_POINTS else None
    panel.plot(line.x[kept], line.y[kept], color=colour, linestyle=style, linewidth=1.2, label=line.label,
               marker=marker, markersize=3)  # fmt: skip
    if np.isfinite(line.low[kept]).any():
        panel.fill_between(line.x[kept], line.low[kept], line.high[kept], color=colour, alpha=0.18, linewidth=0)


@dataclass(frozen=True, eq=False)
class Points:
    """Measured values at sizes, and the power y = scale · x^slope through them (None for none)."""

    label: str
    x: Floats
    y: Floats
    power: tuple[float, float] | None  # scale and slope


def powers(
    panels_data: Sequence[tuple[str, Sequence[Points]]],
    *,
    x_label: str,
    logarithmic: str = "xy",
    joined: bool = False,
) -> bytes:
    """Panels of points with their fitted powers; a legend for each panel of more than one.

    Args:
        logarithmic: axes.
        joined: draw lines between the points.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (label, groups) in zip(panels, panels_data, strict=True):
            for place, points in enumerate(groups):
                colour = COLOURS[place % len(COLOURS)]
                panel.plot(points.x, points.y, color=colour, linestyle="-" if joined else "none", label=points.label,
                           marker=MARKERS[place % len(MARKERS)], markersize=4, alpha=0.85, linewidth=1.0)  # fmt: skip
                if points.power is not None and len(points.x):
                    grid = np.geomspace(points.x.min(), points.x.max(), 30)
                    panel.plot(grid, points.power[0] * grid ** points.power[1], color=colour, linewidth=1.0)
            panel.set(xlabel=x_label, ylabel=label)
            set_logarithmic(panel, logarithmic)
            _show_sizes(panel, groups)
            if len(groups) > 1:
                panel.legend(fontsize=7, frameon=False)

    return drawn_panels(draw, len(panels_data), columns=2, panel=(4.8, 3.0), above=0.4)


def _show_sizes(panel: "Axes", groups: Sequence[Points]) -> None:
    """Ticks where something was measured, rather than at powers of ten."""
    sizes = sorted({float(x) for points in groups for x in points.x})
    if 0 < len(sizes) <= 10:
        panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
