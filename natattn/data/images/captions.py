"""Captions → tokens."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from natattn.data.cache import cache_root, make_folder
from natattn.data.images.pixels import digest
from natattn.data.splits import SplitName
from natattn.data.tokenizers import (
    BPESettings,
    ByteSettings,
    ByteTokenizer,
    HFSettings,
    Tokenizer,
    TokenizerSettings,
    bpe_fingerprint,
    load_bpe,
    load_pretrained,
    train_bpe,
)


def caption_tokenizer(settings: TokenizerSettings, train: list[str], cache: Path | None) -> Tokenizer:
    """The tokenizer of captions; a BPE is trained on those of the train split, once for each content."""
    match settings:
        case ByteSettings():
            return ByteTokenizer()
        case HFSettings():
            return load_pretrained(settings)
        case BPESettings():
            folder = (cache or cache_root()) / "tokenizers" / bpe_fingerprint(settings, digest([], *train))
            found = load_bpe(folder)
            if found is None:
                make_folder(folder)
                found = train_bpe(settings, iter(train))
                found.save(folder)
            return found


def captioned(
    captions: Mapping[SplitName, list[str]], tokenizer: Tokenizer
) -> dict[SplitName, tuple[np.ndarray, np.ndarray]]:
    """{split: (tokens int64 [pairs, longest], lengths int64 [pairs])}, as long as the longest of all splits.

    The end token stands first, for the text tower to read off there, and fills up behind.
    """
    encoded = {name: tokenizer.encode_batch(texts) for name, texts in captions.items()}
    longest = 1 + max(len(ids) for texts in encoded.values() for ids in texts)
    pad = partial(_padded, longest=longest, end=tokenizer.end_token_id)
    return {name: pad(texts) for name, texts in encoded.items()}


def _padded(encoded: list[np.ndarray], *, longest: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(encoded), longest), end, dtype=np.int64)
    for row, ids in zip(tokens, encoded, strict=True):
        row[1 : 1 + len(ids)] = ids
    return tokens, np.array([1 + len(ids) for ids in encoded], dtype=np.int64)
