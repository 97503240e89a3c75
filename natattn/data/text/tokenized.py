"""Text to tokens on disk, prepared once per content, split rule and tokenizer."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from natattn.data.cache import cache_root, found_or_made, replacing
from natattn.data.progress import Progress
from natattn.data.text.blocks import TokenSplit
from natattn.data.text.corpora import DataSettings, open_corpus
from natattn.data.text.grammar import GrammarCorpus
from natattn.data.text.splits import Corpus, SplitName
from natattn.data.text.tokenizers import (
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
from natattn.errors import UserError
from natattn.storage.atomic import sha256_of
from natattn.storage.documents import hash_of

_FORMAT = 1  # part of every fingerprint; increase it if the same input gives different files
_META = "meta.json"
_BATCH_CHARACTERS = 1 << 19  # encoded at once; bounds the memory


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """A tokenized corpus.

    `fingerprint`: hash of text content, split rule and tokenizer.
    `floor`: entropy of the validation split's source in nats per token if it is known (data=grammar), else None.
    """

    name: str
    train: TokenSplit
    validation: TokenSplit
    test: TokenSplit | None
    tokenizer: Tokenizer
    fingerprint: str
    floor: float | None


def prepare(
    data: DataSettings, tokenizer: TokenizerSettings, *, cache: Path | None = None, progress: bool = True
) -> TokenizedCorpus:
    """Return the tokens of a corpus, from the cache if possible.

    The text is hashed at every call (about a second for 2 GB), so a changed file is never mistaken for the old one;
    tokens on disk are hashed too, and damaged ones are prepared again. Memory is bounded for any size of text.
    `cache`: folder of the tokens (default: `cache_root`). `progress`: show a bar if stderr is a terminal.

    Raises: UserError for anything wrong with the text, the tokenizer or the cache folder.
    """
    root = cache or cache_root()
    corpus = open_corpus(data)
    digests = {split: corpus.digest(split) for split in corpus.splits}
    unchanged = partial(_check_unchanged, data, digests)
    encoder, encoder_fingerprint = build_tokenizer(
        tokenizer,
        _text_pieces(corpus, "train"),
        digests["train"],
        root=root,
        bar=Progress("training the tokenizer", corpus.size("train"), progress),
        unchanged=unchanged,
    )
    fingerprint = hash_of([_FORMAT, digests, encoder_fingerprint])
    folder = root / "tokens" / fingerprint
    splits = found_or_made(
        folder,
        partial(_read_splits, folder),
        partial(_write_splits, folder, corpus, encoder, unchanged, progress),
    )
    return TokenizedCorpus(
        name=corpus.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        tokenizer=encoder,
        fingerprint=fingerprint,
        floor=_floor(corpus, splits["validation"]),
    )


def _check_unchanged(data: DataSettings, digests: dict[SplitName, str]) -> None:
    """Raise UserError if the text has changed: its tokens must not be stored under the old hash."""
    corpus = open_corpus(data)
    if {split: corpus.digest(split) for split in corpus.splits} != digests:
        raise UserError("data: the text changed while it was being read. Start again")


def build_tokenizer(
    settings: TokenizerSettings,
    texts: Iterator[str],
    train_digest: str,
    *,
    root: Path,
    bar: Progress,
    unchanged: Callable[[], None] = lambda: None,
) -> tuple[Tokenizer, str]:
    """Return (tokenizer, fingerprint). `texts`, with hash `train_digest`, are read only to train a tokenizer.

    A trained tokenizer is kept in the cache folder `root`, unless `unchanged` raises.
    """
    match settings:
        case ByteSettings():
            return ByteTokenizer(), "byte"
        case HFSettings():
            pretrained = load_pretrained(settings)
            return pretrained, pretrained.fingerprint
        case BPESettings():
            fingerprint = hash_of([_FORMAT, bpe_fingerprint(settings, train_digest)])
            folder = root / "tokenizers" / fingerprint

            def train() -> None:
                with bar:
                    trained = train_bpe(settings, bar.watch(texts))
                unchanged()
                trained.save(folder)

            return found_or_made(folder, partial(load_bpe, folder), train), fingerprint


def _text_pieces(corpus: Corpus, split: SplitName) -> Iterator[str]:
    return (piece for document in corpus.documents(split) for piece in document)


def _read_splits(folder: Path) -> dict[str, TokenSplit] | None:
    """Return the splits of a cache entry; None if it is missing or damaged."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        return {name: _read_split(folder / f"{name}.bin", entry) for name, entry in meta.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def entry_is_whole(folder: Path) -> bool:
    """Return whether a folder of the cache's ``tokens`` is undamaged."""
    return _read_splits(folder) is not None


def _read_split(path: Path, entry: dict[str, Any]) -> TokenSplit:
    if sha256_of(path) != entry["sha256"]:
        raise ValueError(f"{path} is damaged")
    tokens = np.memmap(path, dtype=entry["dtype"], mode="r")
    return TokenSplit(tokens=tokens, byte_count=entry["bytes"], document_count=entry["documents"])


def _write_splits(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, unchanged: Callable[[], None], progress: bool
) -> None:
    """Write the tokens of each split, and then the description that makes them an entry."""
    meta = {}
    for split in corpus.splits:
        with (
            Progress(f"tokenizing {split}", corpus.size(split), progress) as bar,
            replacing(folder / f"{split}.bin") as temporary,
        ):
            meta[split] = _write_tokens(temporary, corpus.documents(split), tokenizer, bar.advance)
            if not meta[split]["bytes"]:
                raise UserError(f"data: the {split} split holds no text")
    unchanged()
    with replacing(folder / _META) as temporary:
        temporary.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _write_tokens(
    path: Path, documents: Iterator[Iterable[str]], tokenizer: Tokenizer, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Write the tokens of all documents, each followed by the end token; return the split's entry in meta.json."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    end = np.array([tokenizer.end_token_id], dtype=dtype).tobytes()
    digest = hashlib.sha256()
    byte_count = document_count = 0
    with open(path, "wb") as file:
        for batch in _batches(documents):
            texts = [piece for piece in batch if piece is not None]
            encoded = iter(tokenizer.encode_batch(texts))
            for piece in batch:
                content = end if piece is None else next(encoded).astype(dtype).tobytes()
                file.write(content)
                digest.update(content)
            document_count += len(batch) - len(texts)
            batch_bytes = sum(len(text.encode()) for text in texts)
            byte_count += batch_bytes
            advance(batch_bytes)
    return {
        "dtype": dtype.str,
        "bytes": byte_count,
        "documents": document_count,
        "sha256": digest.hexdigest(),
    }


def _batches(documents: Iterator[Iterable[str]]) -> Iterator[list[str | None]]:
    """Yield lists of about _BATCH_CHARACTERS of text pieces, with None after each document."""
    batch: list[str | None] = []
    characters = 0
    for document in documents:
        for piece in document:
            batch.append(piece)
            characters += len(piece) + 64  # limits the number of tiny documents in a batch
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        batch.append(None)
    if batch:
        yield batch


def _floor(corpus: Corpus, split: TokenSplit) -> float | None:
    if not isinstance(corpus, GrammarCorpus):
        return None
    return corpus.floor(byte_count=split.byte_count, document_count=split.document_count, token_count=len(split.tokens))
