"""Text as rows instead of one stream: whole lines, truncated, packed and padded, as in the published experiment."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from natattn.config.base import Settings
from natattn.data.text.blocks import TokenSplit
from natattn.data.text.corpora import DataSettings, open_corpus
from natattn.data.text.tokenized import TokenizedCorpus
from natattn.data.text.tokenizers import Tokenizer
from natattn.storage.documents import hash_of

PADDING_TOKEN = 0


class StreamPacking(Settings):
    """All documents in one stream, each followed by the end token."""

    kind: Literal["stream"]


class LinePacking(Settings):
    """Rows of ``line_tokens`` + 1 tokens from the first ``lines`` lines of each split, truncated to ``line_tokens``.

    Non-empty lines are packed into rows greedily and never split; a row is padded with token 0, which is predicted like
    any other token.
    """

    kind: Literal["lines"]
    lines: int = Field(ge=1)
    line_tokens: int = Field(ge=1, le=2**24)


PackingSettings = Annotated[StreamPacking | LinePacking, Field(discriminator="kind")]


def pack(corpus: TokenizedCorpus, data: DataSettings, packing: StreamPacking | LinePacking) -> TokenizedCorpus:
    """Return the corpus with its splits as rows; the tokenizer is still the one trained on the whole train split."""
    if isinstance(packing, StreamPacking):
        return corpus
    text = open_corpus(data)
    splits = {
        name: _packed(_lines(text.documents(name)), corpus.tokenizer, packing)
        for name in ("train", "validation", "test")
        if name in text.splits
    }
    return replace(
        corpus,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        fingerprint=hash_of([corpus.fingerprint, packing.model_dump()]),
        floor=None,
    )


def _packed(lines: Iterator[str], tokenizer: Tokenizer, packing: LinePacking) -> TokenSplit:
    rows: list[list[int]] = []
    kept: list[str] = []
    for line in islice(lines, packing.lines):
        if not line.strip():
            continue
        tokens = tokenizer.encode(line)[: packing.line_tokens]
        kept.append(tokenizer.decode(tokens))
        if not rows or len(rows[-1]) + len(tokens) > packing.line_tokens:
            rows.append([])
        rows[-1].extend(tokens)
    row_length = packing.line_tokens + 1
    padded = [row + [PADDING_TOKEN] * (row_length - len(row)) for row in rows]
    return TokenSplit(
        tokens=np.array(padded, dtype=np.uint32).reshape(-1),
        byte_count=sum(len(line.encode()) for line in kept),
        document_count=len(kept),
        row_length=row_length,
    )


def _lines(documents: Iterator[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of all documents, without line ends; a document may be cut into pieces anywhere."""
    for document in documents:
        rest = ""
        for piece in document:
            *whole, rest = (rest + piece).split("\n")
            yield from whole
        if rest:
            yield rest
