"""The pictures of an analysis: one style, colours that every kind of vision tells apart, readable in grey."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
# What all figures share, as matplotlib's rcParams (Any: their names are a type of their own there).
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
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # names of arms and data are not formulas
}

# Okabe and Ito, in an order in which neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#A23B00", "#56B4E9", "#000000", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "cividis"
WIDEST_WITH_STEPS = 5000.0  # largest over smallest of a logarithmic axis that has ticks at 2 and 5 too
MOST_WRITTEN = 8  # heads side by side whose numbers do not run into each other


def drawn(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    """A PNG of what ``draw`` puts on a figure."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def drawn_panels(
    draw: "Callable[[list[Axes]], None]", count: int, *, columns: int, panel: tuple[float, float], above: float
) -> bytes:
    """A PNG of what ``draw`` puts on panels, row by row; the places that are left in the last row stay empty.

    Args:
        count: of panels.
        columns: at most.
        panel: width and height of one, in inches.
        above: what the rows together leave of the height, in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)

    def draw_all(figure: Any) -> None:
        places = list(figure.subplots(rows, columns, squeeze=False).flatten())
        for empty in places[count:]:
            empty.set_visible(False)
        draw(places[:count])

    return drawn(draw_all, (panel[0] * columns, panel[1] * rows + above))


def head_maps(maps: Sequence[tuple[str, str, Floats]], layers: Sequence[int]) -> bytes:
    """Heads by layers, one panel for each statistic, with the number in every cell.

    Args:
        maps: title, unit and values [layers, heads].
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (title, unit, values) in zip(panels, maps, strict=True):
            image = panel.imshow(values, cmap=SEQUENTIAL, aspect="auto")
            name = title.replace("_", " ")
            panel.set_title(f"{name}, {unit}" if unit else name, fontsize=9)
            panel.set(xlabel="head", ylabel="layer", xticks=range(values.shape[1]))
            panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
            panel.grid(False)
            if values.size <= 150 and values.shape[1] <= MOST_WRITTEN:
                _write_cells(panel, values)
            panel.figure.colorbar(image, ax=panel)

    return drawn_panels(draw, len(maps), columns=3, panel=(4.2, 2.6), above=0.8)


def _write_cells(panel: "Axes", values: Floats) -> None:
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        colour = "#000000" if value > middle else "#ffffff"
        panel.text(column, row, f"{value:.2g}", ha="center", va="center", color=colour, fontsize=7)


def curves(
    panels_data: Sequence[tuple[str, Floats]],
    x: Floats,
    labels: Sequence[str],
    *,
    x_label: str,
    marked: Mapping[str, float],
) -> bytes:
    """Panels of curves over a common, logarithmic axis, one curve for each label; values marked on it are named.

    Args:
        panels_data: label of the vertical axis, and values [points, labels], or [points, 1] for a panel of one curve.
    """

    def draw(panels: "list[Axes]") -> None:
        for panel, (label, values) in zip(panels, panels_data, strict=True):
            for place, curve in enumerate(values.T):
                panel.plot(
                    x, curve, color=COLOURS[place % len(COLOURS)], label=labels[place], linewidth=1.2,
                    marker=MARKERS[place % len(MARKERS)], markersize=3,
                )  # fmt: skip
            for place, (name, value) in enumerate(marked.items()):
                panel.axvline(value, color="#555555", linestyle=":", linewidth=0.9)
                panel.annotate(name, (value, 1), (2, -2 - 9 * place), ("data", "axes fraction"),
                               textcoords="offset points", va="top", fontsize=7, color="#555555")  # fmt: skip
            panel.set(xlabel=x_label, ylabel=label)
            set_logarithmic(panel, "x")
        panels[0].legend(fontsize=7, frameon=False)

    return drawn_panels(draw, len(panels_data), columns=3, panel=(3.6, 2.6), above=0.4)


def set_logarithmic(panel: "Axes", axes: str) -> None:
    """Logarithmic axes with plain numbers: the style does not read formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in axes:
        axis = panel.xaxis if name == "x" else panel.yaxis
        (panel.set_xscale if name == "x" else panel.set_yscale)("log")
        low, high = axis.get_view_interval()
        few = low > 0 and high / low < WIDEST_WITH_STEPS
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def survival(samples: Sequence[tuple[str, Floats]], laws: Sequence[tuple[float, float, float] | None]) -> bytes:
    """P(X ≥ x) of samples on logarithmic axes, each with its fitted power law above the lower bound.

    Args:
        samples: label and values.
        laws: exponent, lower bound and share of the sample above it; None for no fit.
    """

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for place, ((label, values), law) in enumerate(zip(samples, laws, strict=True)):
            if not len(values):
                continue
            ordered, colour = np.sort(values), COLOURS[place % len(COLOURS)]
            points, first = np.unique(ordered, return_index=True)
            panel.plot(points, 1 - first / len(ordered), color=colour, linestyle="none", label=label,
                       marker=MARKERS[place % len(MARKERS)], markersize=3, alpha=0.8)  # fmt: skip
            if law is not None:
                exponent, minimum, share = law
                grid = np.geomspace(minimum, ordered[-1], 50)
                panel.plot(grid, share * (grid / minimum) ** (1 - exponent), color=colour, linewidth=1.0)
        panel.set(xlabel="x", ylabel="P(X ≥ x)")
        set_logarithmic(panel, "xy")
        if panel.lines:
            panel.legend(fontsize=7, frameon=False)

    return drawn(draw, (5.6, 3.8))


def pattern_grid(patterns: Floats, titles: Sequence[str], words: Sequence[str] | None = None) -> bytes:
    """Attention patterns [panels, L, L], rows the queries; with words on the axes where they are given."""
    size = 2.4 if words is None else 5.2

    def draw(panels: "list[Axes]") -> None:
        for panel, pattern, title in zip(panels, patterns, titles, strict=True):
            # The square root shows weights of a hundredth beside those of one.
            panel.imshow(np.sqrt(pattern), cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(title, fontsize=8)
            panel.grid(False)
            if words is None:
                panel.set(xticks=[], yticks=[])
            else:
                panel.set_xticks(range(len(words)), words, rotation=90, fontsize=5)
                panel.set_yticks(range(len(words)), words, fontsize=5)

    return drawn_panels(draw, len(patterns), columns=4, panel=(size, size), above=0.3)
