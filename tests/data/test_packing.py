from pathlib import Path

import numpy as np
import pytest

from natattn.data import pack, prepare
from natattn.data.text.packing import LinePacking, StreamPacking
from natattn.data.text.text import TextSettings
from natattn.data.text.tokenizers import ByteSettings

LINES = LinePacking(kind="lines", lines=5, line_tokens=4)


@pytest.fixture
def data(tmp_path: Path) -> TextSettings:
    (tmp_path / "train.txt").write_text("ab\n\nc\nabcdefgh\nde\nnever read\n")
    (tmp_path / "validation.txt").write_text("xyz\n")
    return TextSettings(
        kind="text", train=str(tmp_path / "train.txt"), validation=str(tmp_path / "validation.txt"), test=None,
        field="text", errors="strict", validation_fraction=0.1, test_fraction=0.1,
    )  # fmt: skip


def test_lines_are_cut_packed_whole_and_padded(data: TextSettings, tmp_path: Path) -> None:
    corpus = prepare(data, ByteSettings(kind="byte"), cache=tmp_path / "cache", progress=False)
    packed = pack(corpus, data, LINES)
    rows = packed.train.tokens.reshape(-1, 5)
    # Of five lines one is empty; "ab" + "c" fit into a row, "abcd" is cut and fills one, "de" begins the next.
    assert [bytes(row[row > 0].astype(np.uint8).tolist()) for row in rows] == [b"abc", b"abcd", b"de"]
    assert all(row[-1] == 0 for row in rows)
    assert (packed.train.row_length, packed.train.document_count, packed.train.byte_count) == (5, 4, 9)
    assert packed.fingerprint != corpus.fingerprint
    assert len(packed.validation.tokens) == 5


def test_a_stream_stays_as_it_is(data: TextSettings, tmp_path: Path) -> None:
    corpus = prepare(data, ByteSettings(kind="byte"), cache=tmp_path / "cache", progress=False)
    assert pack(corpus, data, StreamPacking(kind="stream")) is corpus


def test_a_last_line_without_an_end_is_a_line(data: TextSettings, tmp_path: Path) -> None:
    (tmp_path / "validation.txt").write_text("xy\nz")
    corpus = prepare(data, ByteSettings(kind="byte"), cache=tmp_path / "cache", progress=False)
    validation = pack(corpus, data, LINES).validation
    assert (validation.document_count, validation.byte_count) == (2, 3)
    assert validation.tokens.tolist() == [*b"xyz", 0, 0]
