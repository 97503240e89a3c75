"""The section about hierarchy: attention over real Python sources, against the scopes of their syntax trees."""

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module

import numpy as np
import torch

from natattn.analysis import figures
from natattn.analysis.hierarchy import PYTHON_LEVELS, BlockAffinity, Span, block_affinity, python_levels
from natattn.analysis.patterns import attention_patterns
from natattn.analysis.section import HeadMap, Picture, Section, interval_text, shown, table
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.statistics import t_interval

# Modules with classes, functions and nested blocks near their beginning, in every Python that this project runs on.
MODULES = (
    "argparse", "ast", "bisect", "calendar", "cmd", "code", "codecs", "collections", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "difflib", "dis", "enum", "fileinput", "fnmatch", "fractions",
    "ftplib", "functools", "getopt", "gettext", "glob", "graphlib", "gzip", "heapq", "inspect", "ipaddress",
    "linecache", "locale", "logging", "mimetypes", "numbers", "pprint", "queue", "random", "sched",
    "selectors", "shelve",
)  # fmt: skip


def hierarchy_section(subject: Subject, settings: AnalyzeSettings, advance: Callable[[int], None]) -> Section:
    """Within-block against moved-block attention for classes, functions, blocks and statements, head by head."""
    found: dict[str, list[BlockAffinity]] = {level: [] for level in PYTHON_LEVELS}
    layers: list[int] = []
    for tokens, levels in _sources(subject, settings.text.sequences):
        patterns = attention_patterns(subject.model, tokens[None])
        layers = list(patterns)
        stacked = torch.cat([pattern[0] for pattern in patterns.values()])
        for level, labels in levels.items():
            affinity = block_affinity(stacked, labels, seed=settings.seed)
            if affinity is not None:
                found[level].append(affinity)
        advance(1)
    rows, maps, findings = [], [], []
    for level, affinities in found.items():
        if len(affinities) < 2:
            findings.append(f"Too few sources have more than one {level} within the context.")
            continue
        excess = torch.stack([affinity.excess for affinity in affinities])  # [sources, heads of all layers]
        per_source = excess.mean(1).tolist()
        centre, half = t_interval(per_source)
        best = int(excess.mean(0).argmax())
        heads = excess.shape[1] // len(layers)
        place = f"layer {layers[best // heads]} head {best % heads}"
        strongest, strongest_half = t_interval(excess[:, best].tolist())
        modularity = [float((a.modularity - a.modularity_moved).mean()) for a in affinities]
        rows.append(
            (level, len(affinities), float(torch.stack([a.within for a in affinities]).mean()), centre,
             interval_text(centre - half, centre + half), sum(modularity) / len(modularity), place, strongest,
             interval_text(strongest - strongest_half, strongest + strongest_half))
        )  # fmt: skip
        values = excess.mean(0).view(len(layers), heads)
        maps.append(HeadMap(f"excess in one {level}", "", tuple(layers), tuple(tuple(row) for row in values.tolist())))
        findings.append(
            f"Attention inside the same {level} exceeds that inside moved ones by {shown(centre)} "
            f"{interval_text(centre - half, centre + half)}, mean over heads and 95 % interval over "
            f"{len(affinities)} sources; most in {place}."
        )
    headings = ("level", "sources", "within", "excess", "95 % interval", "modularity excess", "strongest head",
                "its excess", "interval, head chosen on the same sources")  # fmt: skip
    result = table(headings, rows)
    pictures: tuple[Picture, ...] = ()
    if maps:
        caption = (
            "Share of attention inside a token's own class, function, block or statement, minus the same with the "
            "blocks moved: 0 for a head that only looks near by."
        )
        grids = [(found_map.name, "", np.array(found_map.values)) for found_map in maps]
        pictures = (Picture("hierarchy", caption, result, figures.head_maps(grids, layers)),)
    return Section("hierarchy", "Hierarchy: the scopes of Python", tuple(findings), (result,), tuple(maps), pictures)


def _sources(subject: Subject, wanted: int) -> Iterator[tuple[torch.Tensor, dict[str, np.ndarray]]]:
    """Tokens of the code of modules, as many as the context holds, and their blocks."""
    context = subject.tokens.shape[1]
    for name in MODULES[:wanted]:
        source = inspect.getsource(import_module(name))
        # From the first class or function on: what is before are imports and prose.
        start = min((p for p in (source.find("\nclass "), source.find("\ndef ")) if p >= 0), default=-1) + 1
        text = source[start : start + 40 * context]
        ids, spans = _encoded(subject, text, context)
        if len(ids) < context:
            continue
        levels = python_levels(source, [(start + first, start + last) for first, last in spans])
        yield torch.tensor(ids), levels


def _encoded(subject: Subject, text: str, context: int) -> tuple[list[int], list[Span]]:
    """The first tokens of a text, and what each is of it: by the lengths of what they decode to."""
    ids = subject.tokenizer.encode(text)[:context]
    spans, place = [], 0
    for token in ids:
        piece = subject.tokenizer.decode([token])
        core = piece.strip().removeprefix("##")
        found = text.find(core, place) if core else place
        # Tokens of part of a character, and those of a tokenizer that changes the text, are where the last one ended.
        if found < 0 or found - place > 40:
            spans.append((place, place + 1))
            continue
        spans.append((found, found + max(1, len(core))))
        place = found + len(core) if core else min(len(text), place + len(piece))
    return ids, spans
