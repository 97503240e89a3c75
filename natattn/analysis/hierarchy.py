"""Does attention follow the blocks of a hierarchy: Python's scopes, HTML's elements, a grammar's phrases (F2, F5)?

Text has levels; at each a token belongs to one block or to none. Attention inside a block is compared with what the
same pattern gives when the blocks are moved: the labels are turned round by random offsets, which keeps their lengths
and their order. A head that only looks near by gains nothing from that, whatever the lengths are.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natattn.data.grammar import Node

Labels = NDArray[np.int64]  # block of every token; −1 for none
Span = tuple[int, int]  # of characters, the end not included
PYTHON_LEVELS = ("class", "function", "block", "statement")
OUTSIDE = -1
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass(frozen=True, eq=False)
class BlockAffinity:
    """Per head: attention to other tokens that stays inside the block, and modularity; each with its mean when moved.

    Modularity is Newman's for a directed, weighted graph: the share of weight inside blocks minus what rows and columns
    of these sums would give by chance. ``z`` is the excess of ``within`` in standard deviations of the moved ones.
    """

    within: Tensor
    within_moved: Tensor
    z: Tensor
    modularity: Tensor
    modularity_moved: Tensor

    @property
    def excess(self) -> Tensor:
        """within − within_moved, [H]: 0 for a head that does not know the blocks."""
        return self.within - self.within_moved


def block_affinity(pattern_HLS: Tensor, labels: Labels, *, shifts: int = 32, seed: int = 0) -> BlockAffinity | None:
    """How much of attention stays in blocks.

    Args:
        pattern_HLS: [H, L, L], of one text.
        labels: [L].
        shifts: random offsets that the labels are turned by.

    Returns: None where fewer than two blocks have a token, so that there is nothing to tell apart.
    """
    if len(np.unique(labels[labels != OUTSIDE])) < 2:
        return None
    length = len(labels)
    weight = pattern_HLS.double().clone()
    weight.diagonal(dim1=1, dim2=2).zero_()  # a token is in its own block always
    offsets = np.random.default_rng(seed).integers(1, length, shifts)
    true = _inside(weight, torch.from_numpy(labels))
    moved = [_inside(weight, torch.from_numpy(np.roll(labels, offset))) for offset in offsets]
    within = torch.stack([found[0] for found in moved])
    spread = within.std(0).clamp_min(1e-12)
    return BlockAffinity(
        true[0], within.mean(0), (true[0] - within.mean(0)) / spread, true[1],
        torch.stack([found[1] for found in moved]).mean(0),
    )  # fmt: skip


def _inside(weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Share of weight inside blocks, of rows that are in one; and the modularity; [H] each."""
    known = labels != OUTSIDE
    same = ((labels[:, None] == labels) & known[:, None]).double()
    rows = weight[:, known].sum((1, 2)).clamp_min(1e-300)
    total = weight.sum((1, 2)).clamp_min(1e-300)
    inside = (weight * same).sum((1, 2))
    chance = torch.einsum("hi,ij,hj->h", weight.sum(2), same, weight.sum(1)) / total
    return inside / rows, (inside - chance) / total


def python_levels(source: str, spans: Sequence[Span]) -> dict[str, Labels]:
    """Innermost class, function, block of statements and statement of every token.

    Args:
        spans: of each token in the source; a token belongs to what its middle is in.

    Raises: SyntaxError for text that is no Python.
    """
    tree = ast.parse(source)
    starts = np.cumsum([0, *(len(line) for line in source.splitlines(keepends=True))])
    lines = source.splitlines(keepends=True)
    found: dict[str, list[Span]] = {level: [] for level in PYTHON_LEVELS}

    def place(line: int, column: int) -> int:
        # ast counts bytes of UTF-8 within a line.
        return int(starts[line - 1]) + len(lines[line - 1].encode()[:column].decode(errors="ignore"))

    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or node.end_lineno is None or node.end_col_offset is None:
            continue
        span = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        found["statement"].append(span)
        if isinstance(node, ast.ClassDef):
            found["class"].append(span)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found["function"].append(span)
        elif hasattr(node, "body"):
            found["block"].append(span)
    return {level: _innermost(blocks, spans) for level, blocks in found.items()}


def html_levels(source: str, spans: Sequence[Span], depths: int = 4) -> dict[str, Labels]:
    """Element at each of the outermost depths that every token is in."""
    parser = _Elements(source)
    return {f"depth {depth}": _innermost(parser.blocks.get(depth, []), spans) for depth in range(1, depths + 1)}


def grammar_levels(tree: Node, length: int, depths: int = 3) -> dict[str, Labels]:
    """Phrase at each of the outermost depths that every word is in; the sentence itself is no level."""
    levels = {f"depth {depth}": np.full(length, OUTSIDE, dtype=np.int64) for depth in range(1, depths + 1)}
    nodes = [(child, 1) for child in tree.children]
    for number, (node, depth) in enumerate(_walk(nodes, depths)):
        levels[f"depth {depth}"][node.start : node.stop] = number
    return levels


def _walk(nodes: list[tuple[Node, int]], depths: int) -> list[tuple[Node, int]]:
    found = []
    while nodes:
        node, depth = nodes.pop()
        found.append((node, depth))
        if depth < depths:
            nodes.extend((child, depth + 1) for child in node.children)
    return found


def _innermost(blocks: list[Span], spans: Sequence[Span]) -> Labels:
    labels = np.full(len(spans), OUTSIDE, dtype=np.int64)
    middles = np.array([(start + stop) / 2 for start, stop in spans])
    # Longer blocks first, so that what is inside them has the last word.
    for number, (start, stop) in enumerate(sorted(blocks, key=lambda span: span[0] - span[1])):
        labels[(middles >= start) & (middles < stop)] = number
    return labels


class _Elements(HTMLParser):
    """Spans of elements by depth."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.blocks: dict[int, list[Span]] = {}
        self._open: list[tuple[str, int]] = []
        self._starts = np.cumsum([0, *(len(line) for line in source.splitlines(keepends=True))])
        self.feed(source)
        self.close()
        while self._open:
            self._close_last(len(source))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens an element, unless it is of a kind that has no end."""
        if tag not in _VOID:
            self._open.append((tag, self._here()))

    def handle_endtag(self, tag: str) -> None:
        """Closes the element, and those inside it that were left open; an end without a beginning is nothing."""
        if tag in [name for name, _ in self._open]:
            end = self._here() + len(tag) + 3
            while self._open[-1][0] != tag:
                self._close_last(self._here())
            self._close_last(end)

    def _here(self) -> int:
        line, column = self.getpos()
        return int(self._starts[line - 1]) + column

    def _close_last(self, end: int) -> None:
        depth = len(self._open)
        self.blocks.setdefault(depth, []).append((self._open.pop()[1], end))
