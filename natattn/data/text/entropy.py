"""Unigram and bigram entropies of a split: what a model that only counts would reach.

A plug-in entropy uses the counts of the text it is measured on. With one token of context and thousands of token types
this is far too low for a split of ordinary size, so models are compared with the held-out value: the cross-entropy of a
bigram model fitted on the training text.
"""

import numpy as np

_CHUNK = 1 << 22  # tokens processed at once; bounds the memory besides the table of distinct pairs
_LEAST_DISCOUNT = 1e-3


def unigram_entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Return the plug-in entropy H(x_t) of the split, in nats per token."""
    return _entropy(_unigram_counts(tokens, vocab_size))


def bigram_entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Return the plug-in entropy H(x_t | x_{t-1}) of the split, in nats per token; 0 for fewer than two tokens."""
    if len(tokens) < 2:
        return 0.0
    _, counts = _pair_counts(tokens, vocab_size)
    # H(x_t | x_{t-1}) = H(x_{t-1}, x_t) - H(x_{t-1}), both over the same pairs.
    return max(0.0, _entropy(counts) - _entropy(_unigram_counts(tokens[:-1], vocab_size)))


def held_out_bigram_entropy(train: np.ndarray, tokens: np.ndarray, vocab_size: int) -> float:
    """Return the mean of −log p(x_t | x_{t-1}) over a split, in nats per token, for a bigram model of the train split.

    The model is interpolated Kneser–Ney (Ney, Essen and Kneser 1994; Chen and Goodman 1999, eq. 25):

        p(b | a) = (max(c(a,b) − D, 0) + D · N(a·) · p(b)) / c(a),    p(b) = (N(·b) + 1/2) / (N(··) + V/2)

    with c the training counts, N the numbers of distinct continuations and D = n₁/(n₁ + 2n₂), n_k the number of pairs
    seen k times; if no pair was seen once, D = 0.001, because unseen pairs would otherwise be impossible. Tokens that
    never precede another in the training text use p(b). 0 for fewer than two tokens.
    """
    if len(tokens) < 2:
        return 0.0
    model = _KneserNey(train, vocab_size)
    surprise = 0.0
    for start in range(0, len(tokens) - 1, _CHUNK):
        chunk = np.asarray(tokens[start : start + _CHUNK + 1]).astype(np.uint64)
        surprise -= float(np.log(model.probabilities(chunk[:-1], chunk[1:])).sum())
    return surprise / (len(tokens) - 1)


class _KneserNey:
    """The bigram model of ``held_out_bigram_entropy``."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        self._vocab_size = np.uint64(vocab_size)
        self._pairs, self._counts = _pair_counts(tokens, vocab_size)
        firsts, seconds = np.divmod(self._pairs, self._vocab_size)
        once, twice = ((self._counts == k).sum() for k in (1, 2))
        self._discount = float(once / (once + 2 * twice)) if once else _LEAST_DISCOUNT
        self._followers = np.bincount(firsts.astype(np.int64), minlength=vocab_size)
        self._totals = np.bincount(firsts.astype(np.int64), weights=self._counts, minlength=vocab_size)
        precursors = np.bincount(seconds.astype(np.int64), minlength=vocab_size)
        self._continuation = (precursors + 0.5) / (len(self._pairs) + 0.5 * vocab_size)

    def probabilities(self, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Return p(seconds | firsts), elementwise."""
        pairs = firsts * self._vocab_size + seconds
        place = np.minimum(np.searchsorted(self._pairs, pairs), max(len(self._pairs) - 1, 0))
        seen = self._pairs[place] == pairs if len(self._pairs) else np.zeros(len(pairs), dtype=bool)
        counts = np.where(seen, self._counts[place] if len(self._pairs) else 0, 0)
        a, b = firsts.astype(np.int64), seconds.astype(np.int64)
        backed_off = self._discount * self._followers[a] * self._continuation[b]
        known = (np.maximum(counts - self._discount, 0) + backed_off) / np.maximum(self._totals[a], 1)
        return np.where(self._totals[a] > 0, known, self._continuation[b])


def _pair_counts(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct neighbouring pairs, as first · vocab_size + second (uint64, sorted), and their counts."""
    pairs = np.empty(0, dtype=np.uint64)
    counts = np.empty(0, dtype=np.int64)
    for start in range(0, len(tokens) - 1, _CHUNK):
        chunk = np.asarray(tokens[start : start + _CHUNK + 1]).astype(np.uint64)
        new_pairs, new_counts = np.unique(chunk[:-1] * np.uint64(vocab_size) + chunk[1:], return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, new_pairs]), return_inverse=True)
        # A weighted bincount adds in float64, which is exact below 2^53 pairs.
        counts = np.bincount(place, weights=np.concatenate([counts, new_counts])).astype(np.int64)
    return pairs, counts


def _unigram_counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _CHUNK):
        counts += np.bincount(np.asarray(tokens[start : start + _CHUNK]), minlength=vocab_size)
    return counts


def _entropy(counts: np.ndarray) -> float:
    """Return the entropy in nats of the distribution proportional to the counts."""
    seen = counts[counts > 0].astype(np.float64)
    if not len(seen):
        return 0.0
    probabilities = seen / seen.sum()
    return float(-(probabilities * np.log(probabilities)).sum())
