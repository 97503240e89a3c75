"""Claims F2 and F5: does attention follow trees, and look further with depth? (sections ``hierarchy``, ``heads``).

F2: attention inside a token's own block of a known tree, less that inside moved blocks, less what the pattern of
distance alone has that has the most of it, on the same texts; the claim is above 0, at every level of every tree.
F5: slope over layers of the logarithm of the mean attention distance, so that models of different contexts compare;
the claim, our definition, is above 0. The effective rank of patterns is shown beside it: the paper does not say where
it should go.
"""

import math
from collections.abc import Iterator, Sequence

from natattn.analysis.verdicts import AnalysisResult, Group, Measured, Row, findings_of, groups, one_sided, over_seeds
from natattn.report.table import Badge, Cell, Finding, StudyTable
from natattn.reproduce.judges.reading import bounds, layer_means, mean_cell, number, row_of, rows_of
from natattn.statistics.paired import slope_interval

BLOCK_INDIFFERENCE = 0.005  # of attention
SLOPE_INDIFFERENCE = 0.01  # of log distance per layer: 1 %
_ABOVE, _FLOOR = "excess above it", "excess of distance alone"
_LEVEL = ("tree", "level", "excess")


def judge_hierarchy(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """F2 by level, Holm-adjusted over all levels; F5 by kind of models, Holm-adjusted over these."""
    levels = [(group, tree, level) for group in groups(analyses, "hierarchy") for tree, level in _levels(group)]
    blocks = findings_of(study, [_block_row(*each) for each in levels], one_sided("above", BLOCK_INDIFFERENCE))
    silent = [
        Row("F2", "attention inside blocks", group, tuple(Measured(math.nan, missing=_FEW) for _ in group.members))
        for group in groups(analyses, "hierarchy")
        if not _levels(group)
    ]
    blocks += findings_of(study, silent, one_sided("above", BLOCK_INDIFFERENCE))
    layered = groups(analyses, "heads")
    slopes = findings_of(study, [_slope_row(group) for group in layered], one_sided("above", SLOPE_INDIFFERENCE))
    tables = [_level_table(levels, blocks), _layer_table(layered), _slope_table(layered, slopes)]
    return [*blocks, *slopes], [table for table in tables if table.rows]


_FEW = "no level of a tree has sources enough within the context"


def _levels(group: Group) -> list[tuple[str, str]]:
    rows = (row for member in group.members for row in rows_of(member, "hierarchy", *_LEVEL))
    return list(dict.fromkeys((str(row["tree"]), str(row["level"])) for row in rows))


def _block_row(group: Group, tree: str, level: str) -> Row:
    what = f"attention inside a {tree} {level}, above moved blocks and distance alone"
    return Row("F2", what, group, tuple(_above_floor(member, tree, level) for member in group.members), "of attention")


def _above_floor(analysed: AnalysisResult, tree: str, level: str) -> Measured:
    """Mean over heads and sources."""
    row = row_of(analysed, "hierarchy", "tree", tree, level=level)
    if not row:
        return Measured(math.nan, missing="fewer sources than a level needs")
    if _ABOVE not in row:
        return Measured(math.nan, missing="this analysis has no floor of distance alone by level")
    return Measured(number(row, _ABOVE), *bounds(row), over=f"{number(row, 'sources'):.0f} texts")


def _slope_row(group: Group) -> Row:
    what = "slope over layers of log(mean attention distance)"
    return Row("F5", what, group, tuple(map(_slope, group.members)), "per layer")


def _slope(analysed: AnalysisResult) -> Measured:
    found = layer_means(analysed, "heads", "attention_distance")
    known = {layer: math.log(value) for layer, value in found.items() if value > 0}
    if len(known) < 2:
        return Measured(math.nan, missing="fewer than two layers have an attention distance")
    slope, half = slope_interval(list(known), list(known.values()))
    return Measured(slope, slope - half, slope + half, over=f"{len(known)} layers" if len(known) > 2 else "")


def _level_table(levels: Sequence[tuple[Group, str, str]], findings: Sequence[Finding]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = []
    for (group, tree, level), finding in zip(levels, findings, strict=False):
        own = [row_of(member, "hierarchy", "tree", tree, level=level) for member in group.members]
        cells = [mean_cell(group, own, name) for name in ("within", "excess", _FLOOR, "modularity excess")]
        shown = [None if math.isnan(cell.value) else cell for cell in cells]
        rows.append((
            group.label, group.steps, tree, level, *shown, finding.estimate, finding.p_value, finding.count,
            Badge(finding.verdict),
        ))  # fmt: skip
    caption = (
        "Share of attention inside a token's own block, means over heads and texts, without the first token. Excess: "
        "less that with the blocks moved. Distance alone: the most that exp(−d/8) or exp(−d/32) has there. Above it: "
        "paired by text; over seeds Holm-adjusted over the rows, of one model over its texts. The claim: above 0."
    )
    headings = ("models", "steps", "tree", "level", "within", "excess", "of distance alone", "modularity excess",
                "above it", "p", "seeds", "verdict")  # fmt: skip
    runs = tuple(group.runs for group, _, _ in levels)
    return StudyTable("hierarchy_levels", "Attention inside blocks of trees", caption, headings, tuple(rows), runs)


def _layer_table(found: Sequence[Group]) -> StudyTable:
    rows = [(group, row) for group in found for row in _layer_rows(group)]
    caption = "Means over heads, then over seeds with 95 % t intervals, not adjusted."
    headings = ("models", "steps", "layer", "attention distance, tokens", "effective rank of patterns")
    return StudyTable(
        "hierarchy_layers", "Attention by layer", caption, headings, tuple(row for _, row in rows),
        tuple(group.runs for group, _ in rows),
    )  # fmt: skip


def _layer_rows(group: Group) -> Iterator[tuple[Cell, ...]]:
    distances, ranks = (
        [layer_means(member, "heads", name) for member in group.members]
        for name in ("attention_distance", "effective_rank")
    )
    for layer in sorted({layer for found in distances for layer in found}):
        means = (
            over_seeds(group, [Measured(found.get(layer, math.nan)) for found in values])
            for values in (distances, ranks)
        )
        yield group.label, group.steps, layer, *means


def _slope_table(found: Sequence[Group], findings: Sequence[Finding]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (group.label, group.steps, finding.estimate, finding.p_value, finding.count, Badge(finding.verdict))
        for group, finding in zip(found, findings, strict=True)
    ]
    caption = (
        "One slope for each model; over seeds Holm-adjusted over the rows, of one model over its layers. The claim: "
        "above 0, attention looks further in later layers."
    )
    headings = ("models", "steps", "log distance per layer", "p", "seeds", "verdict")
    runs = tuple(group.runs for group in found)
    return StudyTable("hierarchy_slopes", "Distance over depth", caption, headings, tuple(rows), runs)
