"""Texts with trees: the block of every token, and the section over them."""

import json

import numpy as np
import pytest
import torch

from natattn.analysis.hierarchy import OUTSIDE, block_affinity
from natattn.analysis.sections import sources
from natattn.analysis.sections.hierarchy import hierarchy_section
from natattn.analysis.sections.sources import encoded, grammar_texts, html_texts, python_texts
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import load_subject
from natattn.cli.main import main
from natattn.config.compose import compose, plain_values, quote_paths, validated
from natattn.data import prepare
from natattn.data.text.grammar import GrammarSettings, Node
from natattn.data.text.tokenizers import BPESettings, ByteSettings, ByteTokenizer

GRAMMAR = GrammarSettings(
    kind="grammar", seed=0, words=30, phrases=3, rules=3, depth=4, children=3, recursion=0.0,
    train_tokens=2000, validation_tokens=600, test_tokens=0,
)  # fmt: skip


class LowerTokenizer:
    """Words and single signs, in lower case and without white space, as those of encoders are."""

    def __init__(self, pieces):
        self.pieces = pieces

    def encode(self, text):
        return list(range(len(self.pieces)))

    def decode(self, ids):
        return " ".join(self.pieces[i] for i in ids)


def texts_of(text, labels):
    """The text of every block, of tokens that are bytes."""
    return {
        "".join(character for character, label in zip(text, labels, strict=True) if label == number)
        for number in set(labels.tolist()) - {OUTSIDE}
    }


def test_spans_of_tokens_that_change_the_text():
    text = "Class ÄB:\n    [x] unbelievable"
    _, spans = encoded(LowerTokenizer(["class", "äb", ":", "[", "x", "]", "[UNK]", "##believable"]), text)
    found = [text[start:stop] for start, stop in spans]
    assert found[:6] == ["Class", "ÄB", ":", "[", "x", "]"]
    assert found[7] == "believable"  # the one before it is nowhere, and does not move what follows
    ids, spans = encoded(ByteTokenizer(), "a ä", 3)
    assert len(ids) == 3
    assert spans[:2] == [(0, 1), (1, 2)]


def test_sentences_by_hand(monkeypatch):
    """Two sentences of known trees, a token for each byte."""
    left, right = Node(1, 0, 1, 3, [Node(2, 0, 2, 3)]), Node(1, 0, 3, 4)
    trees = [([0, 1, 2, 3], Node(0, 0, 0, 4, [left, right])), ([4, 5], Node(0, 0, 0, 2, [Node(1, 0, 1, 2)]))]
    monkeypatch.setattr(sources, "sample_trees", lambda *_: iter(trees))
    monkeypatch.setattr(sources.GrammarCorpus, "documents", lambda *_: iter([("aa bb cc dd",), ("ee ff",)]))
    (found,) = grammar_texts(ByteTokenizer(), GRAMMAR, 18, 5)
    text = "aa bb cc dd\0ee ff\0"
    assert found.tokens.tolist() == [256 if character == "\0" else ord(character) for character in text]
    assert texts_of(text, found.levels["sentence"]) == {"aa bb cc dd", "ee ff"}
    assert texts_of(text, found.levels["depth 1"]) == {"bb cc", "dd", "ff"}
    assert texts_of(text, found.levels["depth 2"]) == {"cc"}
    assert set(found.levels["depth 3"].tolist()) == {OUTSIDE}
    assert list(grammar_texts(ByteTokenizer(), GRAMMAR, 19, 5)) == []  # longer than all there is
    halves = list(grammar_texts(ByteTokenizer(), GRAMMAR, 9, 5))
    assert texts_of(text[9:], halves[1].levels["depth 1"]) == {"dd", "ff"}
    assert texts_of(text[9:], halves[1].levels["sentence"]) == {"dd", "ee ff"}


@pytest.mark.parametrize("tokenizer", [ByteSettings(kind="byte"), BPESettings(kind="bpe", vocab_size=300)])
def test_windows_of_the_grammar_are_the_tokens_of_training(tokenizer, tmp_path):
    corpus = prepare(GRAMMAR, tokenizer, cache=tmp_path, progress=False)
    found = list(grammar_texts(corpus.tokenizer, GRAMMAR, 32, 5))
    assert len(found) == 5
    assert torch.cat([text.tokens for text in found]).tolist() == corpus.validation.tokens[: 5 * 32].tolist()
    for text in found:
        ends = text.tokens.numpy() == corpus.tokenizer.end_token_id
        assert ((text.levels["sentence"] == OUTSIDE) == ends).all()
        for outer, inner in (("sentence", "depth 1"), ("depth 1", "depth 2"), ("depth 2", "depth 3")):
            assert is_refinement(text.levels[outer], text.levels[inner])


def is_refinement(outer, inner):
    """Every inner block is within one outer block."""
    owners = [set(outer[inner == number].tolist()) for number in set(inner.tolist()) - {OUTSIDE}]
    return all(len(owner) == 1 and OUTSIDE not in owner for owner in owners)


def test_html_depths_count_from_what_holds_the_whole_piece():
    page = "<div><dl><dt>one</dt><dd><b>two</b> three</dd></dl>\n<dl><dt>four</dt></dl></div>"

    def levels_of(piece):
        start = page.index(piece)
        levels = sources._elements_within(page, [(start + i, start + i + 1) for i in range(len(piece))])
        return [texts_of(piece, levels[f"depth {depth}"]) for depth in (1, 2, 3)]

    assert levels_of(page[5:-6])[0] == {"<dl><dt>one</dt><dd><b>two</b> three</dd></dl>", "<dl><dt>four</dt></dl>"}
    assert levels_of("<dt>one</dt><dd><b>two</b> three</dd>") == [
        {"<dt>one</dt>", "<dd><b>two</b> three</dd>"}, {"<b>two</b>"}, set(),
    ]  # fmt: skip
    assert levels_of("three</dd></dl>\n<dl><dt>four")[:2] == [
        {"three</dd></dl>", "<dl><dt>four"},
        {"three</dd>", "<dt>four"},
    ]


@pytest.mark.parametrize("texts", [python_texts, html_texts])
def test_texts_are_real_and_have_levels(texts):
    found = list(texts(ByteTokenizer(), 200, 6))
    assert len(found) >= 4
    for text in found:
        assert len(text.tokens) == 200
        several = [name for name, labels in text.levels.items() if len(set(labels.tolist()) - {OUTSIDE}) > 1]
        assert len(several) >= 2
    again = list(texts(ByteTokenizer(), 200, 6))
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(found, again, strict=True))
    page = ByteTokenizer().decode(found[0].tokens.tolist())
    assert ("</" in page) == (texts is html_texts)


def test_random_attention_does_not_know_the_trees():
    generator = torch.Generator().manual_seed(0)
    found = []
    for text in [*html_texts(ByteTokenizer(), 128, 10), *grammar_texts(ByteTokenizer(), GRAMMAR, 128, 10)]:
        scores = 2 * torch.randn(8, 128, 128, generator=generator) + torch.full((128, 128), -1e9).triu(1)
        for labels in text.levels.values():
            affinity = block_affinity(scores.softmax(-1), labels)
            if affinity is not None:
                found.append(float(affinity.excess.mean()))
    assert len(found) > 30
    assert abs(np.mean(found)) < 0.02


@pytest.fixture(scope="module")
def grammar_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grammar") / "run"
    data = ["data=grammar", "data.train_tokens=2000", "data.validation_tokens=2000", "data.test_tokens=0",
            "data.depth=4", "data.children=2"]  # fmt: skip
    kept = [key for key in tiny if not key.startswith("data")]
    assert main(["train", *kept, *data, "size.context=96", f"hydra.run.dir={folder}"]) == 0
    return folder


def analysed(*arguments):
    composed = compose(quote_paths([*arguments, "text.sequences=8", "device=cpu"]), "analyze")
    settings = validated(plain_values(composed), AnalyzeSettings)
    subject = load_subject(settings, torch.device("cpu"))
    done = []
    return subject, hierarchy_section(subject, settings, done.append), sum(done)


def test_the_section_of_a_grammars_model(grammar_run):
    subject, section, done = analysed(f"run={grammar_run}")
    assert isinstance(subject.data, GrammarSettings)
    assert done == 8
    levels, by_layer = section.tables
    assert [row[:2] for row in levels.rows] == [
        ("grammar", name) for name in ("sentence", "depth 1", "depth 2", "depth 3")
    ]
    assert all(row[2] >= 5 for row in levels.rows)
    assert [row[0] for row in by_layer.rows] == [0, 1]
    assert [found.name for found in section.maps] == [f"excess in grammar {row[1]}" for row in levels.rows]
    # Table by level, table by layer and map are means of the same numbers.
    for place, row in enumerate(levels.rows):
        by_head = np.array(section.maps[place].values)
        assert [each[1 + place] for each in by_layer.rows] == pytest.approx(by_head.mean(1).tolist())
        assert by_head.mean() == pytest.approx(row[4])
    assert section.pictures[0].png.startswith(b"\x89PNG")
    json.dumps(section.to_json(), allow_nan=False)


def test_the_section_of_another_model(tiny, tmp_path):
    assert main(["train", *tiny, "size.context=96", f"hydra.run.dir={tmp_path}/run"]) == 0
    _, section, done = analysed(f"run={tmp_path}/run")
    assert done == 16
    assert {row[0] for row in section.tables[0].rows} == {"python", "html"}
    assert any("python statement" in finding for finding in section.findings)
    assert any("know distance alone, exp(−d/8) and exp(−d/32)" in finding for finding in section.findings)
    assert any("html depth 1" in finding for finding in section.findings)
