"""The section about claim K3, from a grid of heads × head_dim."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from natattn.analysis.pictures import run_figures
from natattn.analysis.pictures.run_figures import Points
from natattn.analysis.run_set import RunSet
from natattn.analysis.scaling import GridPoint, Law, Optimum, head_differences, laws, optima
from natattn.analysis.settings import AnalyzeSettings
from natattn.errors import UserError
from natattn.report.section import Advance, Cell, Picture, Section, Table, interval_text, shown, table
from natattn.statistics.paired import mean, t_interval

SAME_PARAMETERS = 1.05  # largest over smallest of one context and entropy


def is_head_grid(runs: RunSet) -> bool:
    """Models of one number of parameters whose best N·d can be asked for at several contexts or entropies."""
    try:
        points = grid_points(runs)
    except UserError:
        return False
    return len({(p.context, p.entropy) for p in points}) >= 3 and len(optima(points)) >= 3


def grid_points(runs: RunSet) -> list[GridPoint]:
    """The models of a grid.

    Raises: UserError where they do not have about the same number of parameters, or one states no sizes.
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
    """Of the models of each context and entropy."""
    found: dict[tuple[int, float], list[int]] = {}
    for point in points:
        found.setdefault((point.context, point.entropy), []).append(point.parameters)
    return list(found.values())


def scaling_section(runs: RunSet, settings: AnalyzeSettings, advance: Advance) -> Section:
    """The best N·d of every context and entropy, the claim's fit to it, and its rivals'."""
    points = grid_points(runs)
    found = optima(points)
    fitted = laws(found)
    advance(len(points))
    missing = Counter(optimum.missing for optimum in found if optimum.missing is not None)
    unequal = max(max(parameters) / min(parameters) - 1 for parameters in _parameters(points))
    findings = [_of_spread(found), *_of_laws(fitted)]
    findings.append(f"Models of one context and entropy differ by at most {unequal:.1%} in their parameters.")
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
    tables = (_law_table(fitted), _optimum_table(found), _point_table(points))
    pictures = (
        Picture(
            "scaling_losses", "Loss over N·d, mean over heads and seeds, one curve for every context. The claim says "
            "that the valley moves to the right with the context and with the entropy.", tables[2],
            run_figures.powers(_valleys(points), x_label="N·d", logarithmic="x", joined=True),
        ),
        Picture(
            "scaling", "Best N·d over L·H(x), a point for every curve that has its valley inside the grid; the line is "
            "the claim, √(L·H), through their middle.", tables[1],
            run_figures.powers([("best N·d", _optimum_points(found, fitted))], x_label="L·H(x)"),
        ),
    )  # fmt: skip
    return Section("scaling", "Heads × head_dim (claim K3)", tuple(findings), tables, (), pictures)


def _of_spread(found: Sequence[Optimum]) -> str:
    inside = sorted(optimum.product for optimum in found if optimum.product is not None)
    if not inside:
        return "No curve has its least loss inside the grid: nothing can be said of the best N·d."
    return (
        f"The best N·d is between {shown(inside[0])} and {shown(inside[-1])}, median "
        f"{shown(inside[len(inside) // 2])}, over {len(inside)} curves."
    )


def _of_laws(fitted: Sequence[Law]) -> list[str]:
    by_name = {law.name: law for law in fitted}
    free, claim = by_name.get("free powers of L and H"), by_name.get("claim: √(L·H)")
    said = []
    if free is not None:
        missed = [
            f"{symbol}^{shown(exponent)} {interval_text(*interval)}"
            for symbol, exponent, interval in zip("LH", free.exponents, free.intervals, strict=True)
            if interval is not None
        ]
        verdict = (
            f"which the claim's ½ and ½ do not fit (joint F test, p = {shown(claim.p_value, 2)}): refuted on this grid"
            if claim is not None and claim.p_value is not None and claim.p_value < 0.05
            else "which the claim's ½ and ½ fit"
        )
        flat = by_name.get("constant")
        if flat is not None and flat.p_value is not None:
            said_of_none = "does not fit" if flat.p_value < 0.05 else "fits"
            verdict += f"; no dependence at all {said_of_none} (p = {shown(flat.p_value, 2)})"
        said.append(f"Free powers give N·d ∝ {' · '.join(missed)}, {verdict}.")
    if fitted:
        best = min(fitted, key=lambda law: law.aicc)
        ordered = ", ".join(
            f"{law.name} +{shown(law.aicc - best.aicc, 2)}" for law in sorted(fitted, key=lambda law: law.aicc)[1:]
        )
        said.append(f"By Akaike's criterion the best is {best.name}; the others: {ordered}.")
    return said


def _valleys(points: Sequence[GridPoint]) -> list[tuple[str, list[Points]]]:
    """A panel for each entropy, a curve for each context."""
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


def _optimum_points(found: Sequence[Optimum], fitted: Sequence[Law]) -> list[Points]:
    claim = next((law for law in fitted if law.name.startswith("claim")), None)
    groups = []
    for entropy in sorted({optimum.entropy for optimum in found}):
        mine = [o for o in found if o.entropy == entropy and o.product is not None]
        x = np.array([o.context * o.entropy for o in mine])
        power = (claim.scale, 0.5) if claim is not None else None
        groups.append(Points(f"H = {entropy:g}", x, np.array([o.product or math.nan for o in mine]), power))
    return [points for points in groups if len(points.x)]


def _law_table(fitted: Sequence[Law]) -> Table:
    rows: list[list[Cell]] = []
    for law in fitted:
        powers = [
            shown(exponent) + ("" if interval is None else f" {interval_text(*interval)}")
            for exponent, interval in zip(law.exponents, law.intervals, strict=True)
        ]
        exact: list[Cell] = []
        for exponent, interval in zip(law.exponents, law.intervals, strict=True):
            exact += [exponent, *((None, None) if interval is None else interval)]
        rows.append([law.name, *powers, law.scale, law.residual, law.aicc, law.p_value, *exact])
    headings = ("law", "power of L", "power of H", "C", "residual of log N·d", "AICc", "p against free powers",
                "exact power of L", "low of L", "high of L", "exact power of H", "low of H", "high of H")  # fmt: skip
    return table(headings, rows)


def _optimum_table(found: Sequence[Optimum]) -> Table:
    headings = ("context L", "entropy H", "heads", "seed", "best N·d", "none because", "loss there")
    return table(headings, [(o.context, o.entropy, o.heads, o.seed, o.product, o.missing, o.loss) for o in found])


def _point_table(points: Sequence[GridPoint]) -> Table:
    headings = ("context L", "entropy H", "heads", "head_dim", "N·d", "seed", "loss, nats/token", "parameters")
    return table(headings, [
        (p.context, p.entropy, p.heads, p.head_dim, p.product, p.seed, p.loss, p.parameters) for p in points
    ])  # fmt: skip
