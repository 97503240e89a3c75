"""What a model that only counts would reach: the unigram and bigram entropies of a split."""

import numpy as np

_CHUNK = 1 << 22  # tokens looked at together; bounds the memory beside the table of distinct pairs


def unigram_entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Plug-in entropy H(x_t) of the split, in nats per token."""
    return _entropy(_unigram_counts(tokens, vocab_size))


def bigram_entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Plug-in conditional entropy H(x_t | x_{t-1}) of the split, in nats per token; 0 for fewer than two tokens."""
    if len(tokens) < 2:
        return 0.0
    pairs = np.empty(0, dtype=np.uint64)
    counts = np.empty(0, dtype=np.int64)
    for start in range(0, len(tokens) - 1, _CHUNK):
        chunk = np.asarray(tokens[start : start + _CHUNK + 1]).astype(np.uint64)
        new_pairs, new_counts = np.unique(chunk[:-1] * np.uint64(vocab_size) + chunk[1:], return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, new_pairs]), return_inverse=True)
        # Weighted bincount adds in float64: exact below 2^53 pairs.
        counts = np.bincount(place, weights=np.concatenate([counts, new_counts])).astype(np.int64)
    # H(x_t | x_{t-1}) = H(x_{t-1}, x_t) - H(x_{t-1}), both over the same pairs.
    return max(0.0, _entropy(counts) - _entropy(_unigram_counts(tokens[:-1], vocab_size)))


def _unigram_counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _CHUNK):
        counts += np.bincount(np.asarray(tokens[start : start + _CHUNK]), minlength=vocab_size)
    return counts


def _entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution that the counts are proportional to."""
    seen = counts[counts > 0].astype(np.float64)
    if not len(seen):
        return 0.0
    probabilities = seen / seen.sum()
    return float(-(probabilities * np.log(probabilities)).sum())
