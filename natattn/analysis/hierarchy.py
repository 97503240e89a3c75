"""Does attention follow the blocks of a hierarchy: Python's scopes, HTML's elements, a grammar's phrases (F2, F5)?

Text has levels; at each a token belongs to one block or to none. Attention inside a block is compared with what the
same pattern gives when the blocks are moved: the labels are turned round by random offsets, which keeps their lengths
and their order. A head that only looks near by has no excess then, whatever the lengths are.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natattn.data.text.grammar import Node

Labels = NDArray[np.int64]  # block of every token; −1 for none
Span = tuple[int, int]  # of characters, the end not included
PYTHON_LEVELS = ("class", "function", "block", "statement")
OUTSIDE = -1
OFFSETS = 32  # by which blocks are turned round; they come in pairs
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# Elements whose end may be left out, and what begins after it.
_ENDED_BY = {
    "p": {"p", "table", "dl", "ul", "ol", "div", "pre", "h1", "h2", "h3", "h4", "h5", "h6"},
    "li": {"li"}, "dt": {"dt", "dd"}, "dd": {"dt", "dd"}, "tr": {"tr"}, "td": {"td", "th", "tr"},
    "th": {"td", "th", "tr"}, "option": {"option"},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class BlockAffinity:
    """Attention to other tokens that stays inside the block, and modularity; float64 [H] each.

    Modularity is Newman's for a directed, weighted graph: the share of weight inside blocks minus what rows and columns
    of these sums would give by chance.

    Attributes:
        within: share of the attention of tokens in blocks that goes to their own block, a token itself left out.
        excess: the same minus that of moved blocks, 0 for a head that does not know the blocks (``block_affinity``).
        modularity: of the whole text.
        modularity_excess: its difference to moved blocks.
    """

    within: Tensor
    excess: Tensor
    modularity: Tensor
    modularity_excess: Tensor

    @property
    def within_moved(self) -> Tensor:
        """Return ``within`` for shifted blocks."""
        return self.within - self.excess


def block_affinity(pattern_HLS: Tensor, labels: Labels, *, seed: int = 0) -> BlockAffinity | None:
    """Return the share of attention that stays in blocks, against blocks shifted cyclically by random offsets.

    Turned by o, the text's ends meet between tokens o − 1 and o. The comparison leaves out attention across that place,
    for the blocks as they are too: else they would have one boundary fewer than the turned ones, and all attention to
    near tokens an excess of (reach of the head) / L. Offsets come in pairs o and L − o; what depends on the distance
    alone then has the same mass in blocks on both sides.

    Args:
        pattern_HLS: [H, L, L], of one text.
        labels: [L].

    Returns: None where fewer than two blocks have a token, so that there is nothing to tell apart.
    """
    if len(np.unique(labels[labels != OUTSIDE])) < 2:
        return None
    length = len(labels)
    weight = pattern_HLS.double().clone()
    weight.diagonal(dim1=1, dim2=2).zero_()  # a token is in its own block always
    drawn = np.random.default_rng(seed).integers(1, length, OFFSETS // 2)
    offsets = np.concatenate([drawn, length - drawn])
    whole = torch.from_numpy(labels)[None]
    within, modularity = _inside(weight, whole, torch.zeros(1, dtype=torch.long))
    seams = torch.from_numpy(offsets)
    true = _inside(weight, whole.expand(len(offsets), -1), seams)
    moved = _inside(weight, torch.from_numpy(np.stack([np.roll(labels, offset) for offset in offsets])), seams)
    excess, modularity_excess = ((own - turned).mean(1) for own, turned in zip(true, moved, strict=True))
    return BlockAffinity(within[:, 0], excess, modularity[:, 0], modularity_excess)


def _inside(weight_HLS: Tensor, labels_NL: Tensor, seams_N: Tensor) -> tuple[Tensor, Tensor]:
    """Share of weight inside blocks, of rows that are in one; and the modularity; [H, N] each, for N labellings.

    Of each, the text is two texts: the tokens before the seam, and the others.
    """
    known_NL = labels_NL != OUTSIDE
    is_late_NL = torch.arange(labels_NL.shape[1]) >= seams_N[:, None]
    same_NLS = (labels_NL[:, :, None] == labels_NL[:, None]) & known_NL[:, :, None]
    same_NLS = (same_NLS & (is_late_NL[:, :, None] == is_late_NL[:, None])).double()
    # One matrix product for all labellings: reading the weights once for each is what would take the time.
    inside_HN = weight_HLS.flatten(1) @ same_NLS.flatten(1).T
    rows_HNL = _own_side(weight_HLS, is_late_NL)
    columns_HNL = _own_side(weight_HLS.transpose(1, 2), is_late_NL)
    total_HN = rows_HNL.sum(2).clamp_min(1e-300)
    chance_HN = torch.einsum("hnl,nls,hns->hn", rows_HNL, same_NLS, columns_HNL) / total_HN
    of_blocks_HN = (rows_HNL * known_NL).sum(2).clamp_min(1e-300)
    return inside_HN / of_blocks_HN, (inside_HN - chance_HN) / total_HN


def _own_side(weight_HLS: Tensor, is_late_NS: Tensor) -> Tensor:
    """Sum of each row over its own side of the seam, [H, N, L]."""
    late_HNL = (weight_HLS @ is_late_NS.double().T).transpose(1, 2)
    return torch.where(is_late_NS, late_HNL, weight_HLS.sum(2)[:, None] - late_HNL)


def python_levels(source: str, spans: Sequence[Span]) -> dict[str, Labels]:
    """Innermost class, function, block of statements and statement of every token.

    Args:
        spans: of each token in the source; a token belongs to what its middle is in.

    Raises: SyntaxError for text that is no Python.
    """
    tree = ast.parse(source)
    lines = _lines(source)
    starts = np.cumsum([0, *(len(line) for line in lines)])
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


def _lines(source: str) -> list[str]:
    """With their ends. A form feed or a Unicode separator begins no line for a parser, as it does for splitlines."""
    return re.findall(r"[^\n]*\n|[^\n]+", source)


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
        self._starts = np.cumsum([0, *(len(line) for line in _lines(source))])
        self.feed(source)
        self.close()
        while self._open:
            self._close_last(len(source))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens an element, unless it is of a kind that has no end; ends one that it cannot be inside of."""
        while self._open and tag in _ENDED_BY.get(self._open[-1][0], ()):
            self._close_last(self._here())
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
