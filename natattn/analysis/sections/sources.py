"""Texts whose trees are known: sources of Python's standard library, their HTML documentation, a grammar's sentences.

All are made on this machine, without a network.
"""

import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from natattn.analysis.hierarchy import OUTSIDE, Labels, Span, grammar_levels, html_levels, python_levels
from natattn.data.text.grammar import GrammarCorpus, GrammarSettings, Node, sample_trees
from natattn.data.text.tokenizers import Tokenizer

Tree = Literal["python", "html", "grammar"]
HTML_DEPTHS = 5
GRAMMAR_DEPTHS = 3
# Modules with classes, functions and nested blocks near their beginning, in every Python that this project runs on.
MODULES = (
    "argparse", "ast", "bisect", "calendar", "cmd", "code", "codecs", "collections", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "difflib", "dis", "enum", "fileinput", "fnmatch", "fractions",
    "ftplib", "functools", "getopt", "gettext", "glob", "graphlib", "gzip", "heapq", "inspect", "ipaddress",
    "linecache", "locale", "logging", "mimetypes", "numbers", "pprint", "queue", "random", "sched",
    "selectors", "shelve",
)  # fmt: skip
# A text that is tokenised is this many characters for each token of the context at most.
_CHARACTERS_PER_TOKEN = 40
_LONGEST_PAGE = 60_000  # characters; some have half a million
_DEEPEST = 24  # elements of a page
_TRIES = 16  # places in a source


@dataclass(frozen=True, eq=False)
class TreeText:
    """Tokens, int64 [context], and the block of every token at each level, from the outermost level inwards."""

    tree: Tree
    tokens: Tensor
    levels: dict[str, Labels]


def python_texts(tokenizer: Tokenizer, context: int, wanted: int) -> Iterator[TreeText]:
    """Code of at most ``wanted`` modules, from some line after the first class or function: before are imports.

    Levels: class, function, block and statement. A module without a place where two of them have two blocks within the
    context is left out.
    """
    for seed, name in enumerate(MODULES[:wanted]):
        source = inspect.getsource(import_module(name))
        first = min((place for word in ("\nclass ", "\ndef ") if (place := source.find(word)) >= 0), default=0)
        starts = [match.end() for match in re.finditer(r"\n\s*", source) if match.start() >= first]
        found = _excerpt(tokenizer, source, starts, context, partial(python_levels, source), seed)
        if found is not None:
            yield TreeText("python", *found)


def html_texts(tokenizer: Tokenizer, context: int, wanted: int) -> Iterator[TreeText]:
    """Pieces of pydoc's pages of at most ``wanted`` modules, each from some tag after the heading.

    Levels: "depth 1" are the outermost elements that do not hold all of the piece. Pages are left out as above.
    """
    pages = pydoc.HTMLDoc()
    for seed, name in enumerate(MODULES[:wanted]):
        page = pages.docmodule(import_module(name))[:_LONGEST_PAGE]
        first = page.find("<dl>")
        starts = [match.start() for match in re.finditer("<", page) if match.start() >= first]
        found = _excerpt(tokenizer, page, starts, context, partial(_elements_within, page), seed)
        if found is not None:
            yield TreeText("html", *found)


def _elements_within(page: str, spans: list[Span]) -> dict[str, Labels]:
    """Elements by depth, counted from the innermost one that holds all of the spans."""
    labels = list(html_levels(page, spans, _DEEPEST).values())
    shared = next((depth for depth, of_depth in enumerate(labels) if OUTSIDE in of_depth or np.ptp(of_depth)), 0)
    return {f"depth {depth + 1}": labels[shared + depth] for depth in range(HTML_DEPTHS)}


def _excerpt(
    tokenizer: Tokenizer,
    text: str,
    starts: list[int],
    context: int,
    levels_of: Callable[[list[Span]], dict[str, Labels]],
    seed: int,
) -> tuple[Tensor, dict[str, Labels]] | None:
    """Tokens from the first start, in random order, at which two levels have two blocks within the context.

    Starts that are all alike (the heading of a class, the top of a page) would make sources repeat one another, and
    blocks begin where the context does.
    """
    for start in np.random.default_rng(seed).permutation(starts)[:_TRIES].tolist():
        ids, spans = encoded(tokenizer, text[start : start + _CHARACTERS_PER_TOKEN * context], context)
        if len(ids) == context:
            levels = levels_of([(start + first, start + last) for first, last in spans])
            if sum(len(np.unique(labels[labels != OUTSIDE])) > 1 for labels in levels.values()) > 1:
                return torch.tensor(ids), levels
    return None


def grammar_texts(tokenizer: Tokenizer, settings: GrammarSettings, context: int, wanted: int) -> Iterator[TreeText]:
    """The first ``wanted`` windows, without overlap, of the validation split as in training: one stream of sentences.

    Levels: sentence, and phrases by depth below it. A token is in the phrase that its word is in; a space is in those
    that the words on both its sides are in, and the end token after a sentence in none.
    """
    sentences = GrammarCorpus(settings).documents("validation")
    ids: list[int] = []
    names = ("sentence", *(f"depth {depth}" for depth in range(1, GRAMMAR_DEPTHS + 1)))
    blocks: dict[str, list[Labels]] = {name: [] for name in names}
    known, given = 0, 0  # blocks that have a number, windows
    for pieces, (_, tree) in zip(sentences, sample_trees(settings, "validation"), strict=True):
        tokens, levels = _sentence(tokenizer, "".join(pieces), tree)
        ids += [*tokens, tokenizer.end_token_id]
        for name, labels in levels.items():
            blocks[name].append(np.where(labels == OUTSIDE, OUTSIDE, labels + known))
            blocks[name].append(np.array([OUTSIDE]))
        known += 1 + max(int(labels.max(initial=0)) for labels in levels.values())
        while len(ids) >= context:
            if given == wanted:
                return
            joined = {name: np.concatenate(parts) for name, parts in blocks.items()}
            yield TreeText(
                "grammar", torch.tensor(ids[:context]), {name: labels[:context] for name, labels in joined.items()}
            )
            given, ids = given + 1, ids[context:]
            blocks = {name: [labels[context:]] for name, labels in joined.items()}


def _sentence(tokenizer: Tokenizer, text: str, tree: Node) -> tuple[list[int], dict[str, Labels]]:
    """Tokens of a sentence, and the block of each at every level."""
    ids, spans = encoded(tokenizer, text)
    middles = np.minimum([(first + last - 1) // 2 for first, last in spans], len(text) - 1)
    word = np.cumsum([character == " " for character in text])  # a space counts to the word after it
    levels = {"sentence": np.zeros(tree.stop, dtype=np.int64)} | grammar_levels(tree, tree.stop, GRAMMAR_DEPTHS)
    found = {}
    for name, labels in levels.items():
        of_characters = labels[word]
        spaces = np.flatnonzero([character == " " for character in text])
        between = labels[word[spaces] - 1] != labels[word[spaces]]
        of_characters[spaces[between]] = OUTSIDE
        found[name] = of_characters[middles]
    return ids, found


def encoded(tokenizer: Tokenizer, text: str, count: int | None = None) -> tuple[list[int], list[Span]]:
    """The first tokens of a text (None: all), and what characters each is of, by what they decode to.

    Case is not looked at: there are tokenizers that lower it. A token that is not found (part of a character, an
    unknown word) is where the last one ended.
    """
    ids = tokenizer.encode(text)[:count]
    # Character by character, as lower-casing whole strings can change their length.
    folded = "".join(_folded(character) for character in text)
    spans, place = [], 0
    for token in ids:
        piece = tokenizer.decode([token])
        core = "".join(_folded(character) for character in piece.strip().removeprefix("##"))
        found = folded.find(core, place, place + len(core) + 40) if core else place
        if found < 0:
            spans.append((place, place + 1))
            continue
        spans.append((found, found + max(1, len(core))))
        place = found + len(core) if core else min(len(text), place + len(piece))
    return ids, spans


def _folded(character: str) -> str:
    lower = character.lower()
    return lower if len(lower) == 1 else character
