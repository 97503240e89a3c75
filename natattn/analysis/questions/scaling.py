"""Claim K3, N·d = C·√(L·H(x)): the best product of heads and head_dim at a fixed number of parameters.

L is the context in tokens, H(x) the entropy of the data in nats per token (exact if the corpus knows it). The claim is
about which N·d is best; the paper leaves open how to find it. Here models share their number of parameters and their
steps, and the best is the vertex of a parabola in log N·d through the least loss and its neighbours.

log N·d = c + a log L + b log H is fitted to the best N·d of every curve that has its valley inside the grid; the claim
is a = b = ½. By our definition a power is ½ if it differs by at most ``TOLERANCE``. The joint F test of (½, ½) against
the free powers is shown as well; it bars ``supported`` if it rejects, and so do fewer than five seeds.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtrit

from natattn.analysis.frame import Question
from natattn.analysis.run_set import RunSet
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.verdicts import AnalysisResult, Fit, adjusted, known, near
from natattn.errors import UserError
from natattn.report import figures
from natattn.report.figures import Points
from natattn.report.section import Advance, Picture, Section, interval_text, shown, table
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.statistics.paired import LEAST_FOR_A_CLAIM, mean, t_interval

Floats = NDArray[np.float64]
NEIGHBOURS = 2  # of the least loss, on either side, that the parabola goes through
LEAST_WIDTHS = 4
SAME_PARAMETERS = 1.05  # largest over smallest of one context and entropy
CLAIMED = 0.5
TOLERANCE = 0.1
JOINT_LEVEL = 0.05
FREE, CLAIM = "free powers of L and H", "claim: √(L·H)"
_FITTED = 3  # numbers of the free law

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

    ``product`` is None if the least loss is at an end of the grid, so that the best is beyond it, or if no model is
    better than bigrams: these need no attention, and differences say nothing about it. ``missing`` names the reason.
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
        intervals: 95 % t intervals of the fitted exponents, None for those that are given.
        scale: exp(c).
        residual: root mean square of the residuals of log N·d.
        aicc: Akaike's criterion for small samples; the least is best, by less than about 2 it says nothing.
        p_value: of the F test of this law against the free powers; None for these, and if they cannot be fitted.
    """

    name: str
    exponents: tuple[float, float]
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None]
    scale: float
    residual: float
    aicc: float
    p_value: float | None = None


@dataclass(frozen=True)
class Scaling:
    """The result for a grid of heads × head_dim: models, best N·d of every curve, and the laws fitted to these."""

    points: tuple[GridPoint, ...]
    optima: tuple[Optimum, ...]
    laws: tuple[Law, ...]

    def law(self, name: str) -> Law | None:
        """Return the law of a name; None if it could not be fitted."""
        return next((law for law in self.laws if law.name == name), None)

    @property
    def inside(self) -> list[Optimum]:
        """The curves that have their valley inside the grid."""
        return [optimum for optimum in self.optima if optimum.product is not None]


# Exponents of L and of H; None for those that are fitted.
LAWS: Mapping[str, tuple[float | None, float | None]] = {
    CLAIM: (0.5, 0.5),
    "constant": (0.0, 0.0),
    "linear in L": (1.0, 0.0),
    "√L": (0.5, 0.0),
    "√H": (0.0, 0.5),
    FREE: (None, None),
}


def measure(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Scaling:
    """Find the best N·d of every context and entropy, and fit the claim and its rivals to it."""
    points = grid_points(runs)
    found = optima(points)
    advance(len(points))
    return Scaling(tuple(points), tuple(found), tuple(laws(found)))


def is_head_grid(runs: RunSet) -> bool:
    """Return whether models of one number of parameters have a best N·d at several contexts or entropies."""
    try:
        points = grid_points(runs)
    except UserError:
        return False
    return len({(p.context, p.entropy) for p in points}) >= 3 and len(optima(points)) >= 3


def grid_points(runs: RunSet) -> list[GridPoint]:
    """Return the models of a grid.

    Raises: UserError if they do not have about the same number of parameters, or one states no sizes.
    """
    points = []
    for treatment in runs.treatments:
        sizes = [treatment.setting(f"size.{key}") for key in ("context", "n_head", "n_embd")]
        for run, arm in treatment.runs:
            text = run.data.text if run.data else None
            if arm.final_loss is None or arm.parameters is None or text is None:
                continue  # diverged, or of another task: it has no loss to compare
            if not all(isinstance(size, int) for size in sizes):
                raise UserError(f"sections=[scaling]: {run.folder}: its configuration has no size")
            context, heads, width = (int(str(size)) for size in sizes)
            entropy = text.held_out_bigram_entropy if text.floor is None else text.floor
            # Splits of one grammar are cut a little differently by tokenizers: one grammar is one entropy.
            points.append(
                GridPoint(
                    context, round(entropy, 2), heads, width // heads, run.seed or 0, arm.final_loss, arm.parameters,
                    text.held_out_bigram_entropy,
                )
            )  # fmt: skip
    if not points:
        raise UserError("sections=[scaling]: no run ended with a loss")
    cells = Counter((p.context, p.entropy, p.heads, p.product, p.seed) for p in points)
    if repeated := [cell for cell, count in cells.items() if count > 1]:
        context, _, heads, product, seed = repeated[0]
        raise UserError(
            f"sections=[scaling]: several models of context {context}, {heads} heads, N·d {product}, seed {seed}; "
            "valid: one arm (arm=NAME) of runs that differ in sizes and data alone"
        )
    for parameters in _parameters(points):
        if max(parameters) > SAME_PARAMETERS * min(parameters):
            raise UserError(
                f"sections=[scaling]: models of {min(parameters):,} to {max(parameters):,} parameters; valid: the "
                "same number, as by size.n_inner"
            )
    return points


def _parameters(points: Sequence[GridPoint]) -> list[list[int]]:
    """Return the numbers of parameters of the models of each context and entropy."""
    found: dict[tuple[int, float], list[int]] = {}
    for point in points:
        found.setdefault((point.context, point.entropy), []).append(point.parameters)
    return list(found.values())


def optima(points: Sequence[GridPoint]) -> list[Optimum]:
    """Return the best N·d of every (context, entropy, heads, seed) with at least four widths.

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
    """Fit the claim, its rivals and the free powers to the optima inside the grid.

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
    """Return, by seed, the mean difference of loss of the most and the fewest heads at equal N·d, context and entropy.

    This asks whether N·d alone matters. Cells of one seed share its luck, so an interval is over seeds.
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
        # A flat or lopsided valley: the best of the grid itself is all that is known.
        return Optimum(*cell, float(products[least]), None, float(losses[least]))
    return Optimum(*cell, math.exp(vertex), None, float(offset - slope**2 / (4 * curvature)))


def _tested(law: Law, free: Law, count: int) -> Law:
    """Add the F test of the constraints: how much larger the residual is than that of the free powers."""
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
    # One more parameter is the variance; two points to spare are needed.
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


def section(result: Scaling) -> Section:
    """Show the best N·d of every curve, the fit of the claim, and those of its rivals."""
    points, found = result.points, result.optima
    missing = Counter(optimum.missing for optimum in found if optimum.missing is not None)
    unequal = max(max(parameters) / min(parameters) - 1 for parameters in _parameters(points))
    inside = sorted(optimum.product for optimum in result.inside if optimum.product is not None)
    findings = [
        f"The best N·d is between {shown(inside[0])} and {shown(inside[-1])}, median "
        f"{shown(inside[len(inside) // 2])}, over {len(inside)} curves."
        if inside
        else "No curve has its least loss inside the grid: nothing can be said of the best N·d.",
        *_law_sentences(result),
        f"Models of one context and entropy differ by at most {unequal:.1%} in their parameters.",
    ]
    if missing:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(missing.items()))
        findings.append(
            f"{missing.total()} of {len(found)} curves have no best N·d and are left out of the fits ({reasons}; not "
            "learned: no model is better than bigrams)."
        )
    if differences := head_differences(points):
        centre, half = t_interval(differences)
        interval = "" if math.isnan(half) else f" {interval_text(centre - half, centre + half)}"
        findings.append(
            f"The most heads against the fewest at the same N·d, mean over the grid: {shown(centre)}{interval} "
            f"nats/token over {len(differences)} seed{'s' * (len(differences) > 1)}; the claim knows their product "
            "alone."
        )
    law_rows: list[list[str | float | int | None]] = []
    for law in result.laws:
        pairs = list(zip(law.exponents, law.intervals, strict=True))
        words = [shown(power) + ("" if bounds is None else f" {interval_text(*bounds)}") for power, bounds in pairs]
        exact = [number for power, bounds in pairs for number in (power, *(bounds or (None, None)))]
        law_rows.append([law.name, *words, law.scale, law.residual, law.aicc, law.p_value, *exact])
    law_table = table(
        ("law", "power of L", "power of H", "C", "residual of log N·d", "AICc", "p against free powers",
         "exact power of L", "low of L", "high of L", "exact power of H", "low of H", "high of H"), law_rows,
    )  # fmt: skip
    optimum_table = table(
        ("context L", "entropy H", "heads", "seed", "best N·d", "none because", "loss there"),
        [(o.context, o.entropy, o.heads, o.seed, o.product, o.missing, o.loss) for o in found],
    )
    point_table = table(
        ("context L", "entropy H", "heads", "head_dim", "N·d", "seed", "loss, nats/token", "parameters"),
        [(p.context, p.entropy, p.heads, p.head_dim, p.product, p.seed, p.loss, p.parameters) for p in points],
    )
    pictures = (
        Picture(
            "scaling_losses", "Loss over N·d, mean over heads and seeds, one curve for every context. The claim says "
            "that the valley moves to the right with the context and with the entropy.", point_table,
            figures.powers(_valleys(points), x_label="N·d", logarithmic="x", joined=True),
        ),
        Picture(
            "scaling", "Best N·d over L·H(x), a point for every curve that has its valley inside the grid; the line is "
            "the claim, √(L·H), through their middle.", optimum_table,
            figures.powers([("best N·d", _optimum_points(result))], x_label="L·H(x)"),
        ),
    )  # fmt: skip
    tables = (law_table, optimum_table, point_table)
    return Section("scaling", "Heads × head_dim (claim K3)", tuple(findings), tables, (), pictures)


def _law_sentences(result: Scaling) -> list[str]:
    free, claim, flat = (result.law(name) for name in (FREE, CLAIM, "constant"))
    sentences = []
    if free is not None:
        powers = [
            f"{symbol}^{shown(exponent)} {interval_text(*interval)}"
            for symbol, exponent, interval in zip("LH", free.exponents, free.intervals, strict=True)
            if interval is not None
        ]
        outcome = (
            f"which the claim's ½ and ½ do not fit (joint F test, p = {shown(claim.p_value, 2)}): refuted on this grid"
            if claim is not None and claim.p_value is not None and claim.p_value < JOINT_LEVEL
            else "which the claim's ½ and ½ fit"
        )
        if flat is not None and flat.p_value is not None:
            fits = "does not fit" if flat.p_value < JOINT_LEVEL else "fits"
            outcome += f"; no dependence at all {fits} (p = {shown(flat.p_value, 2)})"
        sentences.append(f"Free powers give N·d ∝ {' · '.join(powers)}, {outcome}.")
    if result.laws:
        best, *others = sorted(result.laws, key=lambda law: law.aicc)
        ordered = ", ".join(f"{law.name} +{shown(law.aicc - best.aicc, 2)}" for law in others)
        sentences.append(f"By Akaike's criterion the best is {best.name}; the others: {ordered}.")
    return sentences


def _valleys(points: Sequence[GridPoint]) -> list[tuple[str, list[Points]]]:
    """Return a panel for each entropy, with a curve for each context."""
    panels = []
    for entropy in sorted({point.entropy for point in points}):
        curves = []
        for context in sorted({point.context for point in points}):
            mine: dict[int, list[float]] = {}
            for point in points:
                if (point.entropy, point.context) == (entropy, context):
                    mine.setdefault(point.product, []).append(point.loss)
            products = sorted(mine)
            losses = [mean(mine[product]) for product in products]
            curves.append(Points(f"L = {context}", np.array(products, dtype=float), np.array(losses), None))
        panels.append((f"loss, nats/token, at H = {entropy:g}", curves))
    return panels


def _optimum_points(result: Scaling) -> list[Points]:
    claim = result.law(CLAIM)
    groups = []
    for entropy in sorted({optimum.entropy for optimum in result.inside}):
        mine = [optimum for optimum in result.inside if optimum.entropy == entropy]
        x = np.array([o.context * o.entropy for o in mine])
        power = (claim.scale, 0.5) if claim is not None else None
        groups.append(Points(f"H = {entropy:g}", x, np.array([o.product or math.nan for o in mine]), power))
    return groups


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Judge both powers of every grid, Holm-adjusted over all of them."""
    asked = [(analysed, analysed.result("scaling", Scaling)) for analysed in analyses if "scaling" in analysed.results]
    if not asked:
        return [], []
    fits = [fit for _, result in asked for fit in _fits(result)]
    differences = iter(adjusted(fits, CLAIMED))
    findings = []
    for analysed, result in asked:
        for symbol, fit in zip("LH", _fits(result), strict=True):
            difference = next(differences)
            low, high = difference.interval
            claim = result.law(CLAIM)
            joint = None if claim is None else claim.p_value
            seeds = len({optimum.seed for optimum in result.inside})
            # The joint test bars support, and so do few seeds: their curves share the luck of a seed.
            complete = seeds >= LEAST_FOR_A_CLAIM and (joint is None or joint >= JOINT_LEVEL)
            if math.isnan(fit.value):
                note = "not measured: too few curves have their best N·d inside the grid for free powers"
            else:
                tested = (
                    "the joint F test of ½ and ½ was not made"
                    if joint is None
                    else f"joint F test of ½ and ½: p = {joint:.2g}"
                )
                note = f"interval of the fit over {fit.count} curves of {seeds} seed{'s' * (seeds != 1)}; {tested}"
            findings.append(
                Finding(
                    "K3", study, f"power of {symbol} in the best N·d (claimed: ½)", analysed.where,
                    Estimate(fit.value, low + CLAIMED, high + CLAIMED), "", difference.count,
                    near(TOLERANCE)(difference, complete), known(difference.p_value), note, analysed.runs, CLAIMED,
                )
            )  # fmt: skip
    tables = [_law_table(asked, findings), _optimum_table(asked)]
    return findings, [table for table in tables if table.rows]


def _fits(result: Scaling) -> list[Fit]:
    """Return the free powers of L and H; nan if they were not fitted."""
    free, count = result.law(FREE), len(result.inside)
    if free is None:
        return [Fit(math.nan, math.nan, math.nan, count - _FITTED, count)] * 2
    bounds = [interval or (math.nan, math.nan) for interval in free.intervals]
    return [Fit(power, *ends, count - _FITTED, count) for power, ends in zip(free.exponents, bounds, strict=True)]


def _law_table(asked: Sequence[tuple[AnalysisResult, Scaling]], findings: Sequence[Finding]) -> StudyTable:
    """The claim among its rivals; the free powers with their adjusted intervals and verdicts."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for index, (analysed, result) in enumerate(asked):
        pair = findings[2 * index : 2 * index + 2]
        for law in result.laws:
            powers: list[Cell] = [*law.exponents, None, None]
            if law.name == FREE:
                powers = [*(f.estimate for f in pair), *(Badge(f.verdict) for f in pair)]
            rows.append((analysed.where, law.name, *powers, law.scale, law.residual, law.aicc, law.p_value))
            runs.append(analysed.runs)
    caption = (
        "Laws fitted to the best N·d of every curve that has one inside the grid. The least AICc is best, by less than "
        "2 it says nothing. p: F test of a law against the free powers. Intervals of the free powers are those of the "
        f"fit, Holm-adjusted against ½; ½ means within {TOLERANCE:g} of it, our definition."
    )
    headings = ("data", "law", "power of L", "power of H", "L: ½?", "H: ½?", "C", "residual of log N·d", "AICc",
                "p against free powers")  # fmt: skip
    return StudyTable(
        "scaling_laws", "The best N·d over context and entropy", caption, headings, tuple(rows), tuple(runs)
    )


def _optimum_table(asked: Sequence[tuple[AnalysisResult, Scaling]]) -> StudyTable:
    """The best N·d that the laws are fitted to, next to the claim's value with the claim's own fitted C."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for analysed, result in asked:
        claim = result.law(CLAIM)
        for o in result.optima:
            claimed = None if claim is None else claim.scale * math.sqrt(o.context * o.entropy)
            rows.append((analysed.where, o.context, o.entropy, o.heads, o.seed, o.product, o.missing, claimed))
            runs.append(analysed.runs)
    headings = ("data", "context L", "entropy H", "heads", "seed", "best N·d", "none because", "C·√(L·H)")
    caption = (
        "The vertex of a parabola in log N·d through the least loss and its neighbours; the claim with its best C."
    )
    return StudyTable("scaling_optima", "Best N·d of every curve", caption, headings, tuple(rows), tuple(runs))


SCALING = Question(Scaling, measure, section, is_head_grid, reads_models=False)
