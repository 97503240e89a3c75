"""Claim K3, N·d = C·√(L·H(x)): the best product of heads and head_dim at a fixed number of parameters.

L is the context in tokens, H(x) the entropy of the data in nats per token (exact where the corpus knows it). The claim
is about which N·d is best; how that is to be found the paper leaves open. Here models share their number of parameters
and their steps, and the best is the vertex of a parabola in log N·d through the least loss and its neighbours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtrit

Floats = NDArray[np.float64]
NEIGHBOURS = 2  # of the least loss on either side that the parabola goes through
LEAST_WIDTHS = 4


Missing = Literal["best at the smallest", "best at the largest", "not learned"]


@dataclass(frozen=True)
class GridPoint:
    """One trained model; ``loss``, ``entropy`` and ``bigram_loss``, that of a bigram model, in nats/token."""

    context: int
    entropy: float
    heads: int
    head_dim: int
    seed: int
    loss: float
    parameters: int
    bigram_loss: float

    @property
    def product(self) -> int:
        """N·d."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Optimum:
    """The best N·d of one context, entropy, number of heads and seed.

    ``product`` is None where the least loss is at an end of the grid, so that the best is beyond it, or where no model
    is better than bigrams: these need no attention, and differences say nothing about it. ``missing`` says which.
    """

    context: int
    entropy: float
    heads: int
    seed: int
    product: float | None
    missing: Missing | None
    loss: float


@dataclass(frozen=True)
class Law:
    """log N·d = c + a log L + b log H, with some of a and b given.

    Attributes:
        exponents: of L and H.
        intervals: 95 % t intervals of the fitted ones, None for those that are given.
        scale: exp(c).
        residual: root mean square of what is left of log N·d.
        aicc: Akaike's criterion for small samples; the least is best, by less than about 2 it says nothing.
        p_value: of the F test of this law against the free powers; None for these, and where they cannot be fitted.
    """

    name: str
    exponents: tuple[float, float]
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None]
    scale: float
    residual: float
    aicc: float
    p_value: float | None = None


# Exponents of L and of H; None where they are fitted.
LAWS: Mapping[str, tuple[float | None, float | None]] = {
    "claim: √(L·H)": (0.5, 0.5),
    "constant": (0.0, 0.0),
    "linear in L": (1.0, 0.0),
    "√L": (0.5, 0.0),
    "√H": (0.0, 0.5),
    "free powers of L and H": (None, None),
}


def optima(points: Sequence[GridPoint]) -> list[Optimum]:
    """The best N·d of every (context, entropy, heads, seed) with at least four widths.

    Raises: ValueError for two points of one cell.
    """
    curves: dict[tuple[int, float, int, int], dict[int, float]] = {}
    levels: dict[tuple[int, float, int, int], float] = {}
    for point in points:
        curve = curves.setdefault((point.context, point.entropy, point.heads, point.seed), {})
        if point.product in curve:
            raise ValueError(f"two models of N·d = {point.product}, {point.heads} heads, context {point.context}")
        curve[point.product] = point.loss
        levels[point.context, point.entropy, point.heads, point.seed] = point.bigram_loss
    return [_optimum(cell, curve, levels[cell]) for cell, curve in sorted(curves.items()) if len(curve) >= LEAST_WIDTHS]


def laws(found: Sequence[Optimum]) -> list[Law]:
    """The claim, its rivals and the free powers, all fitted to the same optima that are inside the grid.

    Laws that the optima cannot tell apart (one context, one entropy, too few of them) are left out.
    """
    inside = [(optimum.context, optimum.entropy, optimum.product) for optimum in found if optimum.product is not None]
    if len(inside) < 3:
        return []
    values = np.log(np.array(inside, dtype=np.float64))
    fitted = [law for law in (_law(name, given, values) for name, given in LAWS.items()) if law is not None]
    free = next((law for law in fitted if None not in law.intervals), None)
    return [law if free is None or law is free else _tested(law, free, len(inside)) for law in fitted]


def head_differences(points: Sequence[GridPoint]) -> list[float]:
    """Loss of the most heads minus that of the fewest at equal N·d, context and entropy, mean over these, by seed.

    Is only N·d felt? Cells of one seed share its luck, so that seeds are what an interval is over.
    """
    cells: dict[tuple[int, float, int, int], dict[int, float]] = {}
    for point in points:
        cell = (point.context, point.entropy, point.product, point.seed)
        cells.setdefault(cell, {})[point.heads] = point.loss
    by_seed: dict[int, list[float]] = {}
    for (*_, seed), losses in cells.items():
        if len(losses) > 1:
            by_seed.setdefault(seed, []).append(losses[max(losses)] - losses[min(losses)])
    return [sum(found) / len(found) for found in by_seed.values()]


def _optimum(cell: tuple[int, float, int, int], curve: Mapping[int, float], bigram_loss: float) -> Optimum:
    products = sorted(curve)
    losses = np.array([curve[product] for product in products])
    least = int(losses.argmin())
    missing: Missing | None = None
    if losses[least] >= bigram_loss:
        missing = "not learned"
    elif least in (0, len(products) - 1):
        missing = "best at the smallest" if least == 0 else "best at the largest"
    if missing is not None:
        return Optimum(*cell, None, missing, float(losses[least]))
    near = slice(max(0, least - NEIGHBOURS), least + NEIGHBOURS + 1)
    logs = np.log(np.array(products[near], dtype=np.float64))
    curvature, slope, offset = np.polyfit(logs, losses[near], 2)
    vertex = -slope / (2 * curvature) if curvature > 0 else math.nan
    if not logs[0] <= vertex <= logs[-1]:
        # A flat or lopsided valley: the grid's own best is all that can be said.
        return Optimum(*cell, float(products[least]), None, float(losses[least]))
    return Optimum(*cell, math.exp(vertex), None, float(offset - slope**2 / (4 * curvature)))


def _tested(law: Law, free: Law, count: int) -> Law:
    """F test of the constraints: how much more is left than by the free powers, for each that is given."""
    given = sum(interval is None for interval in law.intervals)
    spare = count - 3
    ratio = (law.residual**2 - free.residual**2) / given / (free.residual**2 / spare) if free.residual else math.inf
    return replace(law, p_value=float(fdtrc(given, spare, max(0.0, ratio))))


def _law(name: str, given: tuple[float | None, float | None], values: Floats) -> Law | None:
    """Least squares of the logarithms; columns of ``values`` are log L, log H, log N·d."""
    target = values[:, 2].copy()
    columns = [np.ones(len(values))]
    for place, exponent in enumerate(given):
        if exponent is None:
            columns.append(values[:, place])
        else:
            target -= exponent * values[:, place]
    design = np.stack(columns, 1)
    count, parameters = design.shape
    # One more parameter is the variance; without two points to spare nothing can be said.
    if np.linalg.matrix_rank(design) < parameters or count - parameters - 2 < 1:
        return None
    coefficients, *_ = np.linalg.lstsq(design, target)
    rest = target - design @ coefficients
    square = float(rest @ rest)
    half = stdtrit(count - parameters, 0.975) * np.sqrt(
        square / (count - parameters) * np.diag(np.linalg.inv(design.T @ design))
    )
    exponents: list[float] = []
    intervals: list[tuple[float, float] | None] = []
    free = 1
    for exponent in given:
        if exponent is None:
            value = float(coefficients[free])
            intervals.append((value - float(half[free]), value + float(half[free])))
            exponents.append(value)
            free += 1
        else:
            exponents.append(exponent)
            intervals.append(None)
    fitted = parameters + 1
    aicc = count * math.log(max(square / count, 1e-300)) + 2 * fitted * count / (count - fitted - 1)
    return Law(
        name, (exponents[0], exponents[1]), (intervals[0], intervals[1]), math.exp(float(coefficients[0])),
        math.sqrt(square / count), aicc,
    )  # fmt: skip
