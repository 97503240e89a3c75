import math

import numpy as np
import pytest

from natattn.data import bigram_entropy, held_out_bigram_entropy, unigram_entropy
from natattn.data.text import entropy


def test_uniform_tokens_have_the_logarithm_of_their_number() -> None:
    tokens = np.tile(np.arange(8, dtype=np.uint16), 100)
    assert unigram_entropy(tokens, 20) == pytest.approx(math.log(8))


def test_a_cycle_has_no_bigram_entropy() -> None:
    assert bigram_entropy(np.tile(np.arange(8, dtype=np.uint16), 100), 8) == pytest.approx(0, abs=1e-12)


def test_a_constant_has_no_entropy() -> None:
    tokens = np.full(50, 3, dtype=np.uint32)
    assert unigram_entropy(tokens, 5) == 0
    assert bigram_entropy(tokens, 5) == 0


def test_hand_counted_bigrams() -> None:
    # Pairs: 00 once, 01 twice, 10 twice; after 0 (three times) H(1/3), after 1 (twice) nothing.
    tokens = np.array([0, 0, 1, 0, 1, 0], dtype=np.uint16)
    expected = 3 / 5 * (math.log(3) - 2 / 3 * math.log(2))
    assert bigram_entropy(tokens, 2) == pytest.approx(expected)


def test_a_markov_chain_is_recovered() -> None:
    # From each state: stay with probability 0.9; stationary distribution uniform.
    flips = np.random.default_rng(1).random(400_000) < 0.1
    tokens = (np.cumsum(flips) % 2).astype(np.uint16)
    expected = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert bigram_entropy(tokens, 2) == pytest.approx(expected, abs=0.005)
    assert unigram_entropy(tokens, 2) == pytest.approx(math.log(2), abs=0.01)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(2).zipf(1.5, 5000).clip(max=300).astype(np.uint16)
    whole = unigram_entropy(tokens, 301), bigram_entropy(tokens, 301)
    monkeypatch.setattr(entropy, "_CHUNK", 7)
    assert (unigram_entropy(tokens, 301), bigram_entropy(tokens, 301)) == pytest.approx(whole, rel=1e-12)


def test_pairs_of_large_vocabularies_do_not_overflow() -> None:
    last = 2**24 - 1  # pairs up to 2^48
    tokens = np.array([last, 0, last, 1, last, 0, last, 1, last], dtype=np.uint32)
    assert bigram_entropy(tokens, 2**24) == pytest.approx(0.5 * math.log(2))


def test_one_token_has_no_pairs() -> None:
    assert bigram_entropy(np.array([1], dtype=np.uint16), 4) == 0


def test_the_bigram_model_is_a_distribution_after_every_token() -> None:
    tokens = np.random.default_rng(0).integers(0, 7, 60).astype(np.uint16)  # token 7 and 8 are never seen
    model = entropy._KneserNey(tokens, 9)
    everything = np.arange(9, dtype=np.uint64)
    for first in range(9):
        probabilities = model.probabilities(np.full(9, first, dtype=np.uint64), everything)
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1)


def test_held_out_bigram_entropy_of_a_markov_chain_is_its_entropy_rate() -> None:
    generator = np.random.default_rng(1)
    flips = generator.random(200_000) < 0.1
    chain = np.cumsum(flips).astype(np.uint16) % 2
    rate = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert held_out_bigram_entropy(chain[:100_000], chain[100_000:], 2) == pytest.approx(rate, abs=0.01)


def test_a_pair_that_the_training_text_lacks_is_unlikely_and_not_impossible() -> None:
    """Of text in which no pair comes once alone, the formula would leave nothing for others."""
    train, held_out = np.array([0, 1, 2] * 50, dtype=np.uint16), np.array([0, 1, 2, 1, 0], dtype=np.uint16)
    assert 1 < held_out_bigram_entropy(train, held_out, 3) < 10


def test_held_out_is_no_less_than_the_truth_where_the_plug_in_entropy_is() -> None:
    generator = np.random.default_rng(2)
    train, held_out = (generator.integers(0, 300, 3000).astype(np.uint16) for _ in range(2))
    truth = math.log(300)
    assert bigram_entropy(held_out, 300) < 0.5 * truth
    assert held_out_bigram_entropy(train, held_out, 300) >= truth - 0.05


def test_held_out_bigram_entropy_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(3).integers(0, 30, 500).astype(np.uint16)
    whole = held_out_bigram_entropy(tokens[:400], tokens[400:], 30)
    monkeypatch.setattr(entropy, "_CHUNK", 7)
    assert held_out_bigram_entropy(tokens[:400], tokens[400:], 30) == pytest.approx(whole, rel=1e-12)


def test_held_out_bigram_entropy_of_too_little_text() -> None:
    empty, one = np.empty(0, dtype=np.uint16), np.array([1], dtype=np.uint16)
    assert held_out_bigram_entropy(one, one, 4) == 0
    assert held_out_bigram_entropy(empty, np.array([1, 2], dtype=np.uint16), 4) == pytest.approx(math.log(4))
