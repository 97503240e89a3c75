"""Blocks of texts, and attention that follows them or does not."""

from random import Random

import numpy as np
import pytest
import torch

from natattn.analysis.hierarchy import (
    OUTSIDE,
    block_affinity,
    grammar_levels,
    html_levels,
    python_levels,
)
from natattn.data.text.grammar import GrammarSettings, build_grammar
from natattn.statistics.paired import t_interval

SOURCE = """import os

class Käse:
    def one(self):
        return 1

    def two(self):
        for i in range(3):
            print(i)
        return 2

x = "ä"; y = 3
"""


def characters(text):
    return [(i, i + 1) for i in range(len(text))]


def texts_of(source, labels):
    """The text of every block."""
    return {"".join(c for c, label in zip(source, labels, strict=True) if label == n) for n in set(labels) - {OUTSIDE}}


def test_python_scopes():
    levels = python_levels(SOURCE, characters(SOURCE))
    assert list(levels) == ["class", "function", "block", "statement"]
    (klass,) = texts_of(SOURCE, levels["class"])
    assert klass.startswith("class Käse:")
    assert klass.endswith("return 2")
    one, two = sorted(texts_of(SOURCE, levels["function"]))
    assert (one[:7], two[:7]) == ("def one", "def two")
    assert {"import os", 'x = "ä"', "y = 3", "return 1", "print(i)"} <= texts_of(SOURCE, levels["statement"])
    assert texts_of(SOURCE, levels["block"]) == {"for i in range(3):\n            print(i)"}
    assert levels["class"][SOURCE.index("import")] == OUTSIDE
    with pytest.raises(SyntaxError):
        python_levels("def", characters("def"))


def test_html_elements_by_depth():
    source = "<div><p>one<br>two</p><p>three</p></div>\n<ul><li>four<li>five</ul>tail</b>"
    levels = html_levels(source, characters(source))
    assert texts_of(source, levels["depth 1"]) == {source[: source.index("\n")], "<ul><li>four<li>five</ul>"}
    assert texts_of(source, levels["depth 2"]) >= {"<p>one<br>two</p>", "<p>three</p>"}
    assert levels["depth 1"][source.index("tail")] == OUTSIDE


def test_elements_whose_end_is_left_out():
    source = "<ul><li>four<li>five</ul><p>six<p>seven<table><tr><td>1<td>2<tr><td>3</table>"
    levels = html_levels(source, characters(source))
    assert texts_of(source, levels["depth 1"]) == {
        "<ul><li>four<li>five</ul>", "<p>six", "<p>seven", "<table><tr><td>1<td>2<tr><td>3</table>",
    }  # fmt: skip
    assert texts_of(source, levels["depth 2"]) == {"<li>four", "<li>five", "<tr><td>1<td>2", "<tr><td>3"}
    assert texts_of(source, levels["depth 3"]) == {"<td>1", "<td>2", "<td>3"}


def test_form_feeds_begin_no_line():
    source = "a = 1\n\x0c\nb = 2\n"
    assert texts_of(source, python_levels(source, characters(source))["statement"]) == {"a = 1", "b = 2"}
    page = "<b>\x0c\u2028</b><i>x\n</i>"
    assert texts_of(page, html_levels(page, characters(page))["depth 1"]) == {"<b>\x0c\u2028</b>", "<i>x\n</i>"}


def test_phrases_of_a_grammar():
    settings = GrammarSettings(
        kind="grammar", seed=0, words=30, phrases=3, rules=3, depth=4, children=2, recursion=0.0,
        train_tokens=100, validation_tokens=100, test_tokens=0,
    )  # fmt: skip
    words, tree, _ = build_grammar(settings).sample(Random(0))
    levels = grammar_levels(tree, len(words))
    assert levels["depth 1"][0] == OUTSIDE  # the sentence's own word
    for child in tree.children:
        assert len(set(levels["depth 1"][child.start : child.stop])) == 1
        for inner in child.children:
            assert len(set(levels["depth 2"][inner.start : inner.stop])) == 1
    assert len(set(levels["depth 1"]) - {OUTSIDE}) == len(tree.children)


def normalised(weights):
    return (weights / weights.sum(-1, keepdim=True)).double()


def test_attention_inside_blocks_is_found_and_nearness_alone_is_not():
    length = 118
    labels = np.repeat(np.arange(14), np.random.default_rng(0).integers(3, 16, 14))[:length]
    assert len(labels) == length
    causal = torch.ones(length, length).tril()
    same = torch.from_numpy(labels[:, None] == labels).float()
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    follows = normalised(causal * (0.02 + same))
    near = normalised(causal * torch.exp(-distance / 3.0))
    uniform = normalised(causal)
    found = block_affinity(torch.stack([follows, near, uniform]), labels)
    assert found.within[0] > 0.2 + found.within_moved[0]
    assert float(found.within[1]) > 0.4  # a near key is in the same block often,
    assert abs(float(found.excess[1])) < 0.005  # and as often in blocks that were moved
    assert abs(float(found.excess[2])) < 0.05
    assert found.modularity_excess[0] > 0.2
    assert abs(float(found.modularity_excess[1])) < 0.02


@pytest.mark.parametrize("reach", [1.0, 10.0, 30.0])
def test_nearness_has_no_excess_on_average_however_far_a_head_reaches(reach):
    length, generator = 96, np.random.default_rng(1)
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    near = normalised(torch.ones(length, length).tril() * torch.exp(-distance / reach))[None]
    found = []
    for seed in range(80):
        labels = np.repeat(np.arange(length), generator.geometric(1 / 12, length))[:length]
        affinity = block_affinity(near, labels, seed=seed)
        if affinity is not None:
            found.append(float(affinity.excess))
    centre, half = t_interval(found)
    assert half < 0.01  # a seam that is counted gives 0.01, 0.03 and 0.04
    assert abs(centre) < half + 0.001


def test_modularity_is_newmans():
    weights = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0]]], dtype=torch.float64)
    labels = np.array([0, 0, 1])
    total = 8.0
    outgoing, incoming = weights[0].sum(1), weights[0].sum(0)
    expected = sum(
        (weights[0, i, j] - outgoing[i] * incoming[j] / total)
        for i in range(3)
        for j in range(3)
        if labels[i] == labels[j]
    )
    found = block_affinity(weights, labels)
    assert float(found.modularity[0]) == pytest.approx(float(expected / total))
    assert float(found.within[0]) == pytest.approx(5.0 / 8.0)


def test_one_block_tells_nothing():
    pattern = torch.full((1, 4, 4), 0.25)
    assert block_affinity(pattern, np.zeros(4, dtype=np.int64)) is None
    assert block_affinity(pattern, np.full(4, OUTSIDE)) is None
