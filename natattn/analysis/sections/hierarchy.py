"""The section about hierarchy: attention over texts with known trees, against the blocks of these trees (F2, F5)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from natattn.analysis.hierarchy import BlockAffinity, block_affinity
from natattn.analysis.patterns import LONGEST_PATTERN, attention_patterns
from natattn.analysis.sections.sources import Tree, TreeText, grammar_texts, html_texts, python_texts
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.data.text.grammar import GrammarSettings
from natattn.report import figures
from natattn.report.section import (
    Advance,
    Cell,
    Picture,
    Section,
    Table,
    head_map,
    interval_text,
    shown,
    table,
)
from natattn.statistics.paired import t_interval

FEWEST_SOURCES = 5
_HEADINGS = (
    "tree", "level", "sources", "within", "excess", "95 % interval", "modularity excess", "strongest head",
    "its excess", "interval, head chosen on the same sources", "excess of distance alone", "excess above it", "low",
    "high",
)  # fmt: skip
DECAYS = (8.0, 32.0)  # tokens, of patterns that know distance alone
_CAPTION = (
    "Share of attention inside a token's own block of the tree, minus the same with the blocks moved: 0 for a head "
    "that only looks near by, below 0 for one that looks at what is between blocks. Attention to the first token, "
    "where heads rest, is left out. Depths of html count from the innermost element that holds the whole excerpt, "
    "those of the grammar from the sentence."
)


@dataclass(frozen=True, eq=False)
class _Level:
    """Results at one level of one kind of tree, with one entry per source with more than one block."""

    tree: Tree
    name: str
    layers: list[int]
    affinities: list[BlockAffinity]
    floors: list[Tensor]  # of each source the excess of every one of ``DECAYS``

    @property
    def above_floor(self) -> list[float]:
        """By source, mean over heads: excess above that of the pattern of distance alone that has the most of it."""
        floors = torch.stack(self.floors)
        floor = floors[:, floors.mean(0).argmax()]
        return [float(value) for value in self.excess.mean((1, 2)) - floor]

    @property
    def full_name(self) -> str:
        """With its tree."""
        return f"{self.tree} {self.name}"

    @property
    def excess(self) -> Tensor:
        """[sources, layers, heads]."""
        return self._by_head([a.excess for a in self.affinities])

    @property
    def within_moved(self) -> Tensor:
        """[sources, layers, heads]."""
        return self._by_head([a.within_moved for a in self.affinities])

    def _by_head(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values).view(len(values), len(self.layers), -1)

    def strongest(self) -> tuple[str, list[float]]:
        """The head with the largest mean excess, and its excess by source."""
        excess = self.excess
        layer, head = divmod(int(excess.mean(0).argmax()), excess.shape[2])
        return f"layer {self.layers[layer]} head {head}", excess[:, layer, head].tolist()


@dataclass(eq=False)
class _Found:
    """Everything that was measured: layers, affinities by tree and level, mean distance by source and layer."""

    layers: list[int] = field(default_factory=list)
    affinities: dict[tuple[Tree, str], list[BlockAffinity]] = field(default_factory=dict)
    distances: list[Tensor] = field(default_factory=list)
    floors: dict[tuple[Tree, str], list[Tensor]] = field(default_factory=dict)  # excess of ``DECAYS``, by source

    def levels(self) -> list[_Level]:
        """Return the levels with enough sources."""
        return [
            _Level(tree, name, self.layers, affinities, self.floors[tree, name])
            for (tree, name), affinities in self.affinities.items()
            if len(affinities) >= FEWEST_SOURCES
        ]


def hierarchy_section(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Section:
    """Within-block against moved-block attention, head by head and layer by layer.

    Texts: Python sources (classes, functions, blocks, statements) and HTML (elements by depth), or for a subject whose
    text is the grammar its sentences (phrases by depth); ``text.sequences`` of each at most.
    """
    found = _measured(subject, settings, advance)
    levels = found.levels()
    findings = [_level_finding(level) for level in levels]
    scarce = [f"{tree} {name}" for (tree, name), few in found.affinities.items() if len(few) < FEWEST_SOURCES]
    if scarce:
        findings.append(
            f"Fewer than {FEWEST_SOURCES} sources have more than one block within the context for: {', '.join(scarce)}."
        )
    findings += _coarsening_findings(levels, found)
    if levels:
        findings.append(_floor_finding(found))
    result = table(_HEADINGS, [_level_row(level) for level in levels])
    maps = tuple(
        head_map(f"excess in {level.full_name}", level.layers, level.excess.mean(0).tolist()) for level in levels
    )
    pictures: tuple[Picture, ...] = ()
    if maps:
        grids = [(one.name, "", np.array(one.values)) for one in maps]
        pictures = (Picture("hierarchy", _CAPTION, result, figures.head_maps(grids, found.layers)),)
    tables = (result, *_layer_tables(levels))
    return Section("hierarchy", "Hierarchy: attention and trees", tuple(findings), tables, maps, pictures)


def _texts(subject: Subject, wanted: int) -> Iterator[TreeText]:
    context = min(subject.tokens.shape[1], LONGEST_PATTERN)
    assert subject.tokenizer is not None
    # A model of the grammar has seen no other text, and no other model has seen its words.
    if isinstance(subject.data, GrammarSettings):
        yield from grammar_texts(subject.tokenizer, subject.data, context, wanted)
    else:
        yield from python_texts(subject.tokenizer, context, wanted)
        yield from html_texts(subject.tokenizer, context, wanted)


def _measured(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> _Found:
    """Patterns of one text at a time, so that memory does not grow with their number."""
    found = _Found()
    for text in _texts(subject, settings.text.sequences):
        patterns = attention_patterns(subject.model, text.tokens[None])
        found.layers = list(patterns)
        found.distances.append(_mean_distances(patterns))
        stacked = torch.cat([pattern[0] for pattern in patterns.values()])
        # Heads with nothing to say rest on the first token, whatever block it is in.
        stacked[:, :, 0] = 0
        by_distance = _of_distance_alone(stacked.shape[-1], subject.is_causal)
        for name, labels in text.levels.items():
            affinity = block_affinity(stacked, labels, seed=settings.seed)
            found.affinities.setdefault((text.tree, name), [])
            if affinity is not None:
                found.affinities[text.tree, name].append(affinity)
                floor = block_affinity(by_distance, labels, seed=settings.seed)
                assert floor is not None  # the same labels
                found.floors.setdefault((text.tree, name), []).append(floor.excess)
        advance(1)
    return found


def _of_distance_alone(length: int, is_causal: bool) -> Tensor:
    """softmax(−|query − key|/ℓ) for every ℓ of ``DECAYS``, [decays, L, L], without the first token as a key."""
    positions = torch.arange(length)
    distance = (positions[:, None] - positions).abs().float()
    scores = torch.stack([-distance / decay for decay in DECAYS])
    if is_causal:
        scores = scores.masked_fill(positions[:, None] < positions, -torch.inf)
    patterns = scores.softmax(-1)
    patterns[:, :, 0] = 0
    return patterns


def _floor_finding(found: _Found) -> str:
    """Return the values of patterns without tree information at the same levels of the same texts."""
    kept = [of_sources for of_sources in found.floors.values() if len(of_sources) >= FEWEST_SOURCES]
    excess = torch.stack([torch.stack(of_sources).mean(0) for of_sources in kept])
    decays = " and ".join(f"exp(−d/{decay:g})" for decay in DECAYS)
    return (
        f"Patterns that know distance alone, {decays}, have an excess of {shown(float(excess.min()))} to "
        f"{shown(float(excess.max()))} at these levels of the same texts: what lies within that says nothing of trees."
    )


def _mean_distances(patterns: dict[int, Tensor]) -> Tensor:
    """Mean |query − key| in tokens over rows and heads, by layer."""
    positions = torch.arange(next(iter(patterns.values())).shape[-1])
    distance = (positions[:, None] - positions).abs().float()
    return torch.stack([(pattern * distance).sum(-1).mean() for pattern in patterns.values()])


def _level_row(level: _Level) -> tuple[Cell, ...]:
    """Under ``_HEADINGS``."""
    centre, half = t_interval(level.excess.mean((1, 2)).tolist())
    place, of_strongest = level.strongest()
    strongest, strongest_half = t_interval(of_strongest)
    above, above_half = t_interval(level.above_floor)
    within = float(torch.stack([a.within for a in level.affinities]).mean())
    modularity = float(torch.stack([a.modularity_excess for a in level.affinities]).mean())
    return (
        level.tree, level.name, len(level.affinities), within, centre, interval_text(centre - half, centre + half),
        modularity, place, strongest, interval_text(strongest - strongest_half, strongest + strongest_half),
        float(torch.stack(level.floors).mean(0).max()), above, above - above_half, above + above_half,
    )  # fmt: skip


def _level_finding(level: _Level) -> str:
    centre, half = t_interval(level.excess.mean((1, 2)).tolist())
    return (
        f"Attention inside the same {level.full_name}, minus that inside moved ones: {shown(centre)} "
        f"{interval_text(centre - half, centre + half)}, mean over heads and 95 % interval over "
        f"{len(level.affinities)} sources; most in {level.strongest()[0]}."
    )


def _relative(level: _Level) -> Tensor:
    """Excess over what moved blocks hold, by layer: levels with small blocks count as much as those with large ones."""
    return level.excess.mean((0, 2)) / level.within_moved.mean((0, 2)).clamp_min(1e-12)


def _by_tree(levels: list[_Level]) -> dict[Tree, list[_Level]]:
    trees: dict[Tree, list[_Level]] = {}
    for level in levels:
        trees.setdefault(level.tree, []).append(level)
    return trees


def _largest_by_layer(levels: list[_Level]) -> list[str]:
    """Return the level with the largest relative excess for each layer."""
    best = torch.stack([_relative(level) for level in levels]).argmax(0)
    return [levels[int(place)].name for place in best]


def _layer_tables(levels: list[_Level]) -> tuple[Table, ...]:
    """Mean excess by layer and level, a table for each kind of tree."""
    tables = []
    for tree, own in _by_tree(levels).items():
        means = torch.stack([level.excess.mean((0, 2)) for level in own], 1).tolist()
        largest = _largest_by_layer(own)
        rows = [(layer, *row, name) for layer, row, name in zip(own[0].layers, means, largest, strict=True)]
        headings = (f"{tree}: layer", *(f"excess, {level.name}" for level in own), "largest against moved blocks")
        tables.append(table(headings, rows))
    return tuple(tables)


def _coarsening_findings(levels: list[_Level], found: _Found) -> list[str]:
    """Do later layers look further, and at larger blocks (F5)?"""
    findings = []
    for tree, own in _by_tree(levels).items():
        if len(own) > 1:
            largest = zip(found.layers, _largest_by_layer(own), strict=True)
            by_layer = ", ".join(f"{name} in layer {layer}" for layer, name in largest)
            findings.append(f"Against moved blocks, the {tree} level with the largest relative excess is {by_layer}.")
    if len(found.layers) >= 3 and len(found.distances) >= 2:
        places = np.arange(len(found.layers))
        correlations = [float(np.corrcoef(places, distance.numpy())[0, 1]) for distance in found.distances]
        centre, half = t_interval(correlations)
        first, last = (float(torch.stack(found.distances)[:, layer].mean()) for layer in (0, -1))
        findings.append(
            f"The mean attention distance is {shown(first)} tokens in the first layer and {shown(last)} in the last; "
            f"its correlation with the layer is {shown(centre)} {interval_text(centre - half, centre + half)} (95 % "
            f"interval over {len(correlations)} sources of this one model, not over models)."
        )
    return findings
