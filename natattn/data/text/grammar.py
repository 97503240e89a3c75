"""Sentences of a seeded probabilistic context-free grammar whose entropy is known exactly.

Every rule writes one word followed by its sub-phrases: A → w B C …. The rules of a phrase begin with different words,
so reading a sentence from the left determines the rule at each word: each sentence has exactly one derivation. The
grammar is therefore unambiguous, and the entropy of the sentences equals the entropy of the derivations.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Literal

import numpy as np
from pydantic import Field

from natattn.config.base import Settings
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

_FORMAT = 1  # part of the digest; increase it if the same settings give different sentences
_SYLLABLES = [consonant + vowel for vowel in "aeiou" for consonant in "bdfghjklmnprstvz"]


class GrammarSettings(Settings):
    """Sizes of the grammar and of its samples; the seed draws rules, probabilities and sentences."""

    kind: Literal["grammar"]
    seed: int
    depth: int = Field(ge=1, le=64)
    phrases: int = Field(ge=1, le=1000)
    rules: int = Field(ge=1, le=1000)
    words: int = Field(ge=1, le=2**20)
    children: int = Field(ge=1, le=1000)
    recursion: float = Field(ge=0, lt=1)
    train_tokens: int = Field(ge=1, le=10**12)
    validation_tokens: int = Field(ge=1, le=10**12)
    test_tokens: int = Field(ge=0, le=10**12)


@dataclass(frozen=True)
class Rule:
    """A rule: phrase → word, then the children in order."""

    word: int
    children: tuple[int, ...]
    probability: float


@dataclass(slots=True)
class Node:
    """A phrase in a parse tree: it spans words start … stop - 1 of its sentence and was expanded by `rule`."""

    phrase: int
    rule: int
    start: int
    stop: int = 0
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Grammar:
    """A grammar; `phrases[i]` are the rules of phrase i, and phrase 0 is the sentence.

    Raises: UserError if a sentence has no finite expected length (spectral radius of the branching process ≥ 1),
    ValueError if two rules of a phrase begin with the same word.
    """

    phrases: tuple[tuple[Rule, ...], ...]

    def __post_init__(self) -> None:
        for rules in self.phrases:
            if len({rule.word for rule in rules}) != len(rules):
                raise ValueError("the rules of one phrase must begin with different words")
        radius = float(np.abs(np.linalg.eigvals(self._mean_children)).max())
        if radius >= 1:
            raise UserError(
                f"data.recursion: the grammar's sentences never end (each phrase leads to {radius:.2f} of its kind on "
                "average, below 1 is needed); lower data.recursion, data.children or data.depth"
            )

    @cached_property
    def _mean_children(self) -> np.ndarray:
        """Return [phrases, phrases]: the expected number of children of kind j of a phrase of kind i."""
        matrix = np.zeros((len(self.phrases), len(self.phrases)))
        for phrase, rules in enumerate(self.phrases):
            for rule in rules:
                for child in rule.children:
                    matrix[phrase, child] += rule.probability
        return matrix

    @cached_property
    def expected_phrases(self) -> np.ndarray:
        """Return [phrases]: the expected count of each phrase in a sentence; solves v = e₀ + Mᵀ v."""
        identity = np.eye(len(self.phrases))
        return np.linalg.solve(identity - self._mean_children.T, identity[0])

    @property
    def sentence_length(self) -> float:
        """Return the expected number of words of a sentence; each phrase writes one word."""
        return float(self.expected_phrases.sum())

    @property
    def sentence_entropy(self) -> float:
        """Return the entropy of a sentence in nats: that of the rule choice, summed over expected phrases."""
        choices = [-sum(r.probability * math.log(r.probability) for r in rules) for rules in self.phrases]
        return float(self.expected_phrases @ np.array(choices))

    @property
    def token_entropy(self) -> float:
        """Return the entropy in nats per token if each word and each sentence end is one token."""
        return self.sentence_entropy / (self.sentence_length + 1)

    def sample(self, random: Random) -> tuple[list[int], Node, float]:
        """Draw (words, parse tree, log-probability in nats) of one sentence."""
        choices = self._cumulative
        words: list[int] = []
        log_probability = 0.0
        root = Node(0, -1, 0)
        open_nodes = [root]  # a stack, because trees may be deeper than Python's
        while open_nodes:
            node = open_nodes.pop()
            if node.rule >= 0:  # visited again after all its children
                node.stop = len(words)
                continue
            rules = self.phrases[node.phrase]
            draw = random.random()
            node.rule = next(i for i, bound in enumerate(choices[node.phrase]) if draw < bound)
            rule = rules[node.rule]
            node.start = len(words)
            words.append(rule.word)
            log_probability += math.log(rule.probability)
            node.children = [Node(child, -1, 0) for child in rule.children]
            open_nodes.append(node)
            open_nodes += reversed(node.children)
        return words, root, log_probability

    @cached_property
    def _cumulative(self) -> list[list[float]]:
        """Return the upper bound of each rule's part of [0, 1); the last is exactly 1."""
        sums = [np.cumsum([rule.probability for rule in rules]).tolist() for rules in self.phrases]
        return [[*bounds[:-1], 1.0] for bounds in sums]


def build_grammar(settings: GrammarSettings) -> Grammar:
    """Build the grammar of the settings' seed and sizes.

    Level 0 is the sentence; levels 1 … depth - 1 have `phrases` phrases each. Rules above the last level have
    1 … `children` sub-phrases of the next level; those of the last level write only their word, except one that, with
    probability `recursion`, opens a phrase of level 1 again (of level 0 if that is the only level).

    Raises: UserError if there are too few words for the rules or if sentences would never end.
    """
    rules_needed = settings.rules + (settings.recursion > 0)
    if settings.words < rules_needed:
        raise UserError(
            f"data.words={settings.words}: the {rules_needed} rules of a phrase (data.rules, and one more for "
            f"data.recursion) begin with different words, so at least {rules_needed} are needed"
        )
    random = Random(f"natattn grammar {settings.seed}")  # text seeds are hashed identically in every Python
    levels = [[0]]
    for level in range(1, settings.depth):
        first = 1 + (level - 1) * settings.phrases
        levels.append(list(range(first, first + settings.phrases)))
    reentry = levels[min(1, settings.depth - 1)]
    phrases = []
    for level, names in enumerate(levels):
        below = levels[level + 1] if level + 1 < settings.depth else None
        phrases += [_draw_rules(settings, random, below, reentry) for _ in names]
    return Grammar(tuple(phrases))


def _draw_rules(
    settings: GrammarSettings, random: Random, below: list[int] | None, reentry: list[int]
) -> tuple[Rule, ...]:
    """Draw the rules of one phrase with sub-phrases from `below`; None for the last level."""
    recursive = below is None and settings.recursion > 0
    words = _draw_distinct(random, settings.words, settings.rules + recursive)
    weights = [-math.log(1 - random.random()) for _ in range(settings.rules)]  # uniform over the simplex
    share = (1 - settings.recursion if recursive else 1) / sum(weights)
    rules = []
    for word, weight in zip(words, weights, strict=False):
        count = _draw_below(random, settings.children) + 1 if below else 0
        children = tuple(below[_draw_below(random, len(below))] for _ in range(count)) if below else ()
        rules.append(Rule(word, children, weight * share))
    if recursive:
        rules.append(Rule(words[-1], (reentry[_draw_below(random, len(reentry))],), settings.recursion))
    return tuple(rules)


def _draw_below(random: Random, count: int) -> int:
    """Draw uniformly from 0 … count - 1 with Random.random(), which alone is stable across Python versions."""
    return int(random.random() * count)


def _draw_distinct(random: Random, count: int, wanted: int) -> list[int]:
    numbers = list(range(count))
    return [numbers.pop(_draw_below(random, len(numbers))) for _ in range(wanted)]


def sample_trees(settings: GrammarSettings, split: SplitName) -> Iterator[tuple[list[int], Node]]:
    """Yield (words, parse tree) of each sentence of a split, in order; the same at every call.

    Sentences are drawn until words and sentence ends together reach the split's token count.
    """
    grammar = build_grammar(settings)
    random = Random(f"natattn grammar {settings.seed} {split}")
    wanted = token_count(settings, split)
    tokens = 0
    while tokens < wanted:
        words, tree, _ = grammar.sample(random)
        tokens += len(words) + 1
        yield words, tree


def token_count(settings: GrammarSettings, split: SplitName) -> int:
    """Return the minimum number of words and sentence ends of a split."""
    counts = {"train": settings.train_tokens, "validation": settings.validation_tokens, "test": settings.test_tokens}
    return counts[split]


class GrammarCorpus:
    """A corpus whose documents are the sentences, with a space between words.

    Words are spelled in syllables ("ba", "bego"): letters only, so that a BPE can learn each as one token, and all of
    equal width, so that the number of bytes determines the number of words.
    """

    name = "grammar"

    def __init__(self, settings: GrammarSettings) -> None:
        self.settings = settings
        self.grammar = build_grammar(settings)
        self._spelling = _spell(settings.words)

    @property
    def splits(self) -> tuple[SplitName, ...]:
        return ("train", "validation", "test") if self.settings.test_tokens else ("train", "validation")

    def digest(self, split: SplitName) -> str:
        """Hash of the settings: the sentences follow from them."""
        return hashlib.sha256(f"{_FORMAT} {split} {self.settings.model_dump_json()}".encode()).hexdigest()

    def size(self, split: SplitName) -> int:
        return token_count(self.settings, split) * (len(self._spelling[0]) + 1)

    def documents(self, split: SplitName) -> Iterator[Iterable[str]]:
        for words, _ in sample_trees(self.settings, split):
            yield (" ".join(self._spelling[word] for word in words),)

    def floor(self, *, byte_count: int, document_count: int, token_count: int) -> float:
        """Return the entropy in nats per token of a split, for the token count of a tokenizer.

        Exact if each word and each sentence end is one token. For other lossless tokenizers it is the exact entropy per
        word times the measured words per token of the split.
        """
        # A sentence of n words of one width has n · (width + 1) - 1 bytes.
        words = (byte_count + document_count) / (len(self._spelling[0]) + 1)
        return self.grammar.token_entropy * (words + document_count) / token_count


def _spell(count: int) -> list[str]:
    """Return `count` different words with the same number of syllables."""
    spelling = _SYLLABLES
    while len(spelling) < count:
        spelling = [word + syllable for word in spelling for syllable in _SYLLABLES]
    return spelling[:count]
