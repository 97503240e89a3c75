"""Figures in one style, with colours that are safe for colour blindness and readable in grey.

Each function returns a PNG. matplotlib is imported when the first figure is drawn.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
# matplotlib's rcParams for every figure (Any: matplotlib has a type of its own for their names).
STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # names of arms and data are not formulas
}

# Okabe and Ito, in an order in which neighbours also differ in lightness.
COLOURS = ("#0072B2", "#E69F00", "#A23B00", "#56B4E9", "#000000", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
GREY = "#555555"  # of levels and notes
_SEQUENTIAL = "cividis"
_WIDEST_WITH_STEPS = 5000.0  # largest over smallest value of a logarithmic axis that also has ticks at 2 and 5
_MOST_WRITTEN = 8  # most heads side by side whose numbers do not overlap
_MOST_MARKED = 25  # most points of a curve that get markers


def drawn(draw: "Callable[[Figure], None]", size: tuple[float, float]) -> bytes:
    """Return a PNG of what ``draw`` puts on a figure of ``size`` inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")  # not pyplot's, which would keep the figure in memory
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def drawn_panels(
    draw: "Callable[[list[Axes]], None]", count: int, *, columns: int, panel: tuple[float, float], above: float
) -> bytes:
    """Return a PNG of what ``draw`` puts on ``count`` panels, row by row.

    Args:
        columns: at most.
        panel: width and height of one panel, in inches.
        above: height next to that of the rows, in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)

    def draw_all(figure: "Figure") -> None:
        panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
        for empty in panels[count:]:
            empty.set_visible(False)
        draw(panels[:count])

    return drawn(draw_all, (panel[0] * columns, panel[1] * rows + above))


def colour(index: int) -> str:
    """Return the colour of the series at ``index``."""
    return COLOURS[index % len(COLOURS)]


def look(index: int, **options: Any) -> dict[str, Any]:
    """Return the colour and marker of the series at ``index``, with further options of ``Axes.plot``."""
    return {"color": colour(index), "marker": MARKERS[index % len(MARKERS)], "markersize": 3} | options


def set_logarithmic(panel: "Axes", axes: str) -> None:
    """Make axes ("x", "y" or "xy") logarithmic, with plain numbers at their ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in axes:
        axis = panel.xaxis if name == "x" else panel.yaxis
        (panel.set_xscale if name == "x" else panel.set_yscale)("log")
        low, high = axis.get_view_interval()
        few = low > 0 and high / low < _WIDEST_WITH_STEPS
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def head_maps(maps: Sequence[tuple[str, str, Floats]], layers: Sequence[int]) -> bytes:
    """Draw heads by layers, one panel for each statistic, with the number in every cell.

    Args:
        maps: title, unit and values [layers, heads].
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (title, unit, values) in zip(panels, maps, strict=True):
            image = panel.imshow(values, cmap=_SEQUENTIAL, aspect="auto")
            name = title.replace("_", " ")
            panel.set_title(f"{name}, {unit}" if unit else name, fontsize=9)
            panel.set(xlabel="head", ylabel="layer", xticks=range(values.shape[1]))
            panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
            panel.grid(False)
            if values.size <= 150 and values.shape[1] <= _MOST_WRITTEN:
                middle = (np.nanmin(values) + np.nanmax(values)) / 2
                for (row, column), value in np.ndenumerate(values):
                    ink = "#000000" if value > middle else "#ffffff"
                    panel.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=7)
            panel.figure.colorbar(image, ax=panel)

    return drawn_panels(draw, len(maps), columns=3, panel=(4.2, 2.6), above=0.8)


def pattern_grid(patterns: Floats, titles: Sequence[str], words: Sequence[str] | None = None) -> bytes:
    """Draw attention patterns [panels, L, L], rows the queries, with ``words`` on the axes if they are given."""
    size = 2.4 if words is None else 5.2

    def draw(panels: "list[Axes]") -> None:
        for panel, pattern, title in zip(panels, patterns, titles, strict=True):
            # The square root shows weights of a hundredth next to those of one.
            panel.imshow(np.sqrt(pattern), cmap=_SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(title, fontsize=8)
            panel.grid(False)
            if words is None:
                panel.set(xticks=[], yticks=[])
            else:
                panel.set_xticks(range(len(words)), words, rotation=90, fontsize=5)
                panel.set_yticks(range(len(words)), words, fontsize=5)

    return drawn_panels(draw, len(patterns), columns=4, panel=(size, size), above=0.3)


def curves(
    panels_data: Sequence[tuple[str, Floats]],
    x: Floats,
    labels: Sequence[str],
    *,
    x_label: str,
    marked: Mapping[str, float],
) -> bytes:
    """Draw panels of curves over a common logarithmic axis.

    Args:
        panels_data: label of the vertical axis, and values [points, labels], or [points, 1] for a panel of one curve.
        labels: of the curves.
        marked: {name: value} to mark on the horizontal axis.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (label, values) in zip(panels, panels_data, strict=True):
            for index, curve in enumerate(values.T):
                panel.plot(x, curve, label=labels[index], **look(index))
            for index, (name, value) in enumerate(marked.items()):
                panel.axvline(value, color=GREY, linestyle=":", linewidth=0.9)
                panel.annotate(name, (value, 1), (2, -2 - 9 * index), ("data", "axes fraction"),
                               textcoords="offset points", va="top", fontsize=7, color=GREY)  # fmt: skip
            panel.set(xlabel=x_label, ylabel=label)
            set_logarithmic(panel, "x")
        panels[0].legend()

    return drawn_panels(draw, len(panels_data), columns=3, panel=(3.6, 2.6), above=0.4)


def lines_loglog(
    panels_data: Sequence[tuple[str, str, Sequence[tuple[str, Floats]]]], *, x_label: str, floor: float = 0.0
) -> bytes:
    """Draw panels of curves over 1, 2, 3, … on logarithmic axes.

    Args:
        panels_data: title, label of the vertical axis, and name and values of each curve.
        floor: smaller values are not drawn.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (title, y_label, lines) in zip(panels, panels_data, strict=True):
            for index, (name, values) in enumerate(lines):
                marked = np.unique(np.geomspace(1, len(values), 8).round().astype(int)) - 1
                panel.plot(
                    np.arange(1, len(values) + 1), np.where(values > floor, values, np.nan), label=name,
                    **look(index, linestyle=LINES[index % len(LINES)], markersize=4, markevery=marked.tolist()),
                )  # fmt: skip
            set_logarithmic(panel, "xy")
            panel.set(xlabel=x_label, ylabel=y_label)
            panel.set_title(title, fontsize=9, loc="left")
            if panel.lines:
                panel.legend()

    return drawn_panels(draw, len(panels_data), columns=len(panels_data), panel=(4.6, 3.6), above=0.0)


def survival(samples: Sequence[tuple[str, Floats]], laws: Sequence[tuple[float, float, float] | None]) -> bytes:
    """Draw P(X ≥ x) of samples on logarithmic axes, each with its fitted power law above the lower bound.

    Args:
        samples: label and values.
        laws: exponent, lower bound and share of the sample above it; None for no fit.
    """

    def draw(figure: "Figure") -> None:
        panel = figure.subplots()
        for index, ((label, values), law) in enumerate(zip(samples, laws, strict=True)):
            if not len(values):
                continue
            ordered = np.sort(values)
            points, first = np.unique(ordered, return_index=True)
            panel.plot(points, 1 - first / len(ordered), label=label, alpha=0.8, **look(index, linestyle="none"))
            if law is not None:
                exponent, minimum, share = law
                grid = np.geomspace(minimum, ordered[-1], 50)
                panel.plot(grid, share * (grid / minimum) ** (1 - exponent), color=colour(index), linewidth=1.0)
        panel.set(xlabel="x", ylabel="P(X ≥ x)")
        set_logarithmic(panel, "xy")
        if panel.lines:
            panel.legend()

    return drawn(draw, (5.6, 3.8))


def bars(panels_data: Sequence[tuple[str, Sequence[tuple[str, tuple[float, float, float]]]]], *, x_label: str) -> bytes:
    """Draw panels of horizontal bars: a mean, with a whisker from the least to the greatest value.

    Args:
        panels_data: title, and name and (mean, least, greatest) of each bar; a mean that is not finite has no bar.
    """
    counts = [len(samples) for _, samples in panels_data]

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(len(panels_data), 1, squeeze=False, sharex=True, height_ratios=counts).flatten()
        for index, (panel, (title, samples)) in enumerate(zip(panels, panels_data, strict=True)):
            for row, (_, (mean, low, high)) in enumerate(samples):
                if not np.isfinite(mean):
                    continue
                panel.barh(row, mean, height=0.62, color=colour(index), alpha=0.75)
                panel.plot([low, high], [row, row], color="#000000", linewidth=1.0, marker="|", markersize=5)
                panel.text(1.02, row, f"{mean:.2f}", transform=panel.get_yaxis_transform(), va="center", fontsize=8)
            panel.set_yticks(range(len(samples)), [name for name, _ in samples])
            panel.invert_yaxis()
            panel.set_title(title, fontsize=9, loc="left")
            panel.grid(False, axis="y")
        panels[-1].set(xlabel=x_label)
        panels[-1].set_xlim(left=0)

    return drawn(draw, (6.6, 0.9 + sum(0.42 + 0.27 * count for count in counts)))


@dataclass(frozen=True, eq=False)
class Line:
    """A curve, and the borders of its band (nan for none)."""

    label: str
    x: NDArray[Any]
    y: Floats
    low: Floats
    high: Floats


def bands(panels_data: Sequence[tuple[str, Sequence[Line], Mapping[str, float]]]) -> bytes:
    """Draw panels of curves with bands, each curve over its own steps, on a logarithmic axis without step 0.

    Args:
        panels_data: label of the vertical axis, curves, and {name: level} to draw across.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (label, lines, levels) in zip(panels, panels_data, strict=True):
            for index, line in enumerate(lines):
                kept = line.x > 0
                style = look(index, linestyle=LINES[index // len(COLOURS) % len(LINES)])
                if kept.sum() > _MOST_MARKED:
                    del style["marker"]
                panel.plot(line.x[kept], line.y[kept], label=line.label, **style)
                if np.isfinite(line.low[kept]).any():
                    borders = line.low[kept], line.high[kept]
                    panel.fill_between(line.x[kept], *borders, color=colour(index), alpha=0.18, linewidth=0)
            # Limits of the means: a band that is wider than all of them together is cut.
            seen = np.concatenate([line.y[np.isfinite(line.y) & (line.x > 0)] for line in lines])
            if len(seen):
                low, high = float(seen.min()), float(seen.max())
                margin = 0.2 * (high - low) or 0.1 * abs(high) or 1.0
                panel.set_ylim(low - margin, high + margin)
            low, high = panel.get_ylim()
            for name, level in levels.items():
                if low <= level <= high:
                    panel.axhline(level, color=GREY, linestyle=":", linewidth=0.9)
                    panel.annotate(name, (1, level), (-2, 2), ("axes fraction", "data"), textcoords="offset points",
                                   ha="right", fontsize=7, color=GREY)  # fmt: skip
            panel.set(xlabel="steps", ylabel=label)
            set_logarithmic(panel, "x")
        panels[0].legend()

    return drawn_panels(draw, len(panels_data), columns=2, panel=(5.0, 3.0), above=0.4)


@dataclass(frozen=True, eq=False)
class Points:
    """Measured values at sizes, and the power y = scale · x^slope through them.

    Attributes:
        power: scale and slope; None for no fit.
    """

    label: str
    x: Floats
    y: Floats
    power: tuple[float, float] | None


def powers(
    panels_data: Sequence[tuple[str, Sequence[Points]]],
    *,
    x_label: str,
    logarithmic: str = "xy",
    joined: bool = False,
) -> bytes:
    """Draw panels of points with their fitted powers, and a legend if there is more than one series.

    Args:
        logarithmic: axes.
        joined: draw lines between the points.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (label, groups) in zip(panels, panels_data, strict=True):
            for index, points in enumerate(groups):
                style = look(index, linestyle="-" if joined else "none", markersize=4, linewidth=1.0)
                panel.plot(points.x, points.y, label=points.label, alpha=0.85, **style)
                if points.power is not None and len(points.x):
                    grid = np.geomspace(points.x.min(), points.x.max(), 30)
                    panel.plot(grid, points.power[0] * grid ** points.power[1], color=colour(index), linewidth=1.0)
            panel.set(xlabel=x_label, ylabel=label)
            set_logarithmic(panel, logarithmic)
            # Ticks at the sizes that were measured, rather than at powers of ten.
            sizes = sorted({float(x) for points in groups for x in points.x})
            if 0 < len(sizes) <= 10:
                panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
            if len(groups) > 1:
                panel.legend()

    return drawn_panels(draw, len(panels_data), columns=2, panel=(4.8, 3.0), above=0.4)
