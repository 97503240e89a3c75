import math
from itertools import islice
from random import Random

import numpy as np
import pytest

from natattn.data.text.grammar import Grammar, GrammarCorpus, GrammarSettings, Node, Rule, build_grammar, sample_trees
from natattn.errors import UserError


def make_settings(**changes: object) -> GrammarSettings:
    fields = {
        "kind": "grammar",
        "seed": 0,
        "depth": 4,
        "phrases": 5,
        "rules": 3,
        "words": 20,
        "children": 3,
        "recursion": 0.05,
        "train_tokens": 3000,
        "validation_tokens": 1000,
        "test_tokens": 500,
    }
    return GrammarSettings.model_validate(fields | changes)


def check_tree(grammar: Grammar, node: Node, words: list[int]) -> int:
    """The tree derives the words: returns where it ends."""
    rule = grammar.phrases[node.phrase][node.rule]
    assert words[node.start] == rule.word
    assert tuple(child.phrase for child in node.children) == rule.children
    position = node.start + 1
    for child in node.children:
        assert child.start == position
        position = check_tree(grammar, child, words)
    assert node.stop == position
    return position


def test_a_hand_solved_grammar() -> None:
    # S → a S with probability 1/3, S → b with 2/3: geometric lengths of mean 3/2, entropy 3/2 · H(1/3).
    grammar = Grammar(((Rule(0, (0,), 1 / 3), Rule(1, (), 2 / 3)),))
    choice = math.log(3) - 2 / 3 * math.log(2)
    assert grammar.sentence_length == pytest.approx(1.5)
    assert grammar.sentence_entropy == pytest.approx(1.5 * choice)
    assert grammar.token_entropy == pytest.approx(1.5 * choice / 2.5)


def test_a_hand_solved_grammar_of_two_phrases() -> None:
    # S → a T T; T → a (1/2) | b T (1/4) | c (1/4): 1 S and 2 / (1 - 1/4) T in a sentence.
    grammar = Grammar(
        ((Rule(0, (1, 1), 1.0),), (Rule(0, (), 1 / 2), Rule(1, (1,), 1 / 4), Rule(2, (), 1 / 4))),
    )
    assert grammar.expected_phrases == pytest.approx([1, 8 / 3])
    assert grammar.sentence_entropy == pytest.approx(8 / 3 * 1.5 * math.log(2))


def test_the_entropy_is_the_mean_surprise_of_sampled_sentences() -> None:
    grammar = build_grammar(make_settings())
    random = Random(1)
    samples = [grammar.sample(random) for _ in range(20_000)]
    for values, exact in [
        ([-log_probability for _, _, log_probability in samples], grammar.sentence_entropy),
        ([float(len(words)) for words, _, _ in samples], grammar.sentence_length),
    ]:
        measured = np.array(values)
        error = np.std(measured) / math.sqrt(len(measured))
        assert error < 0.02 * exact
        assert np.mean(measured) == pytest.approx(exact, abs=4 * error)


def test_sentences_have_one_derivation_that_reading_from_the_left_finds() -> None:
    settings = make_settings()
    grammar = build_grammar(settings)
    for words, tree in islice(sample_trees(settings, "train"), 200):
        rules = []
        waiting = [0]
        for word in words:
            phrase = waiting.pop()
            (rule,) = [i for i, rule in enumerate(grammar.phrases[phrase]) if rule.word == word]  # exactly one fits
            rules.append((phrase, rule))
            waiting += reversed(grammar.phrases[phrase][rule].children)
        assert not waiting
        stack, written = [tree], []
        while stack:
            node = stack.pop()
            written.append((node.phrase, node.rule))
            stack += reversed(node.children)
        assert rules == written


def test_trees_span_their_words() -> None:
    settings = make_settings()
    grammar = build_grammar(settings)
    for words, tree in islice(sample_trees(settings, "train"), 200):
        assert check_tree(grammar, tree, words) == len(words)


def test_words_that_begin_two_rules_of_a_phrase_are_refused() -> None:
    with pytest.raises(ValueError, match="different words"):
        Grammar(((Rule(0, (), 0.5), Rule(0, (0,), 0.5)),))


def test_probabilities_sum_to_one() -> None:
    for rules in build_grammar(make_settings()).phrases:
        assert sum(rule.probability for rule in rules) == pytest.approx(1)


def test_without_recursion_the_depth_is_bounded() -> None:
    def depth(node: Node) -> int:
        return 1 + max(map(depth, node.children), default=0)

    trees = [tree for _, tree in sample_trees(make_settings(recursion=0.0), "train")]
    assert {depth(tree) for tree in trees} == {4}


@pytest.mark.parametrize("depth", [1, 2])
def test_few_levels(depth: int) -> None:
    grammar = build_grammar(make_settings(depth=depth))
    assert len(grammar.phrases) == 1 + 5 * (depth - 1)
    assert math.isfinite(grammar.token_entropy)


def test_sentences_without_end_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.recursion.*never end"):
        build_grammar(make_settings(depth=8, recursion=0.5))


def test_too_few_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.words=3: the 4 rules"):
        build_grammar(make_settings(words=3))


def test_splits_follow_from_the_seed_alone_and_differ() -> None:
    settings = make_settings()
    first = [words for words, _ in sample_trees(settings, "train")]
    assert first == [words for words, _ in sample_trees(settings, "train")]
    other_split = [words for words, _ in sample_trees(settings, "validation")]
    other_seed = [words for words, _ in sample_trees(make_settings(seed=1), "train")]
    assert first[:20] != other_split[:20]
    assert first[:20] != other_seed[:20]
    assert sum(len(words) + 1 for words in first) >= 3000
    assert sum(len(words) + 1 for words in first[:-1]) < 3000


def test_the_grammar_of_a_seed_never_changes() -> None:
    # Published floors hang on it: if this fails, raise _FORMAT in grammar.py and say so in the change log.
    grammar = build_grammar(make_settings())
    assert grammar.phrases[0][0].word == 6
    assert grammar.token_entropy == pytest.approx(0.9015302853316399, rel=1e-12)


def test_text_is_words_of_one_width_from_which_the_floor_counts_them() -> None:
    settings = make_settings(words=300)
    corpus = GrammarCorpus(settings)
    texts = ["".join(document) for document in corpus.documents("validation")]
    assert len({len(word) for text in texts for word in text.split()}) == 1
    counts = {
        "byte_count": sum(len(text.encode()) for text in texts),
        "document_count": len(texts),
        "token_count": sum(len(text.split()) + 1 for text in texts),
    }
    exact = build_grammar(settings).token_entropy
    assert corpus.floor(**counts) == pytest.approx(exact, rel=1e-12)  # a token for each word and end
    assert corpus.floor(**counts | {"token_count": 4 * counts["token_count"]}) == pytest.approx(exact / 4)


def test_the_digest_depends_on_every_setting_and_the_split() -> None:
    digests = {
        GrammarCorpus(settings).digest(split)
        for settings in (make_settings(), make_settings(seed=1), make_settings(depth=3))
        for split in ("train", "validation")
    }
    assert len(digests) == 6
