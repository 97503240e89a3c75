"""Pictures of comparisons: bars with their spread, and curves on logarithmic axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.pictures.figures import COLOURS, MARKERS, drawn, set_logarithmic

Floats = NDArray[np.float64]
_BAR_HEIGHT = 0.27  # inches
_LINES = ("-", "--", "-.", ":")


def bars(panels_data: Sequence[tuple[str, Sequence[tuple[str, tuple[float, float, float]]]]], *, x_label: str) -> bytes:
    """Draw panels of horizontal bars: a mean, also as a number, with a whisker from the least to the greatest value.

    Args:
        panels_data: title, and for each bar its name and (mean, least, greatest); a bar without a finite mean is left
            out.
    """
    counts = [len(samples) for _, samples in panels_data]

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(panels_data), 1, squeeze=False, sharex=True, height_ratios=counts).flatten()
        for place, (panel, (title, samples)) in enumerate(zip(panels, panels_data, strict=True)):
            for row, (_, (mean, low, high)) in enumerate(samples):
                if not np.isfinite(mean):
                    continue
                panel.barh(row, mean, height=0.62, color=COLOURS[place % len(COLOURS)], alpha=0.75)
                panel.plot([low, high], [row, row], color="#000000", linewidth=1.0, marker="|", markersize=5)
                panel.text(1.02, row, f"{mean:.2f}", transform=panel.get_yaxis_transform(), va="center", fontsize=8)
            panel.set_yticks(range(len(samples)), [name for name, _ in samples])
            panel.invert_yaxis()
            panel.set_title(title, fontsize=9, loc="left")
            panel.grid(False, axis="y")
        panels[-1].set(xlabel=x_label)
        panels[-1].set_xlim(left=0)

    return drawn(draw, (6.6, 0.9 + sum(0.42 + _BAR_HEIGHT * count for count in counts)))


def lines_loglog(
    panels_data: Sequence[tuple[str, str, Sequence[tuple[str, Floats]]]], *, x_label: str, floor: float = 0.0
) -> bytes:
    """Panels of curves over 1, 2, 3, … on logarithmic axes, told apart by colour, line and marker.

    Args:
        panels_data: title, label of the vertical axis, and for each curve its name and values in order.
        floor: smaller values are not drawn.
    """

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(panels_data), squeeze=False).flatten()
        for panel, (title, y_label, lines) in zip(panels, panels_data, strict=True):
            for place, (name, values) in enumerate(lines):
                shown = np.where(values > floor, values, np.nan)
                marked = np.unique(np.geomspace(1, len(values), 8).round().astype(int)) - 1
                panel.plot(
                    np.arange(1, len(values) + 1), shown, color=COLOURS[place % len(COLOURS)], label=name,
                    linestyle=_LINES[place % len(_LINES)], linewidth=1.3, marker=MARKERS[place % len(MARKERS)],
                    markersize=4, markevery=marked.tolist(),
                )  # fmt: skip
            set_logarithmic(panel, "xy")
            panel.set(xlabel=x_label, ylabel=y_label)
            panel.set_title(title, fontsize=9, loc="left")
            if panel.lines:
                panel.legend(fontsize=7, frameon=False)

    return drawn(draw, (4.6 * len(panels_data), 3.6))
