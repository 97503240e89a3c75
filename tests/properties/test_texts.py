"""Whatever bytes a text file has: its tokens are the text again, or one line says what is wrong with it."""

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from property_tools import TRIED, examples, message_of

from natattn.data import prepare
from natattn.data.text.text import TextSettings
from natattn.data.text.tokenizers import BPESettings, ByteSettings, ByteTokenizer, train_bpe
from natattn.errors import UserError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
# Files that are mostly text, with what spoils it.
PIECES = st.sampled_from(
    [b"word ", b"\n", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"<|endoftext|>",
     "é→😀".encode(), b"a" * 70_000, b" " * 3000]
)  # fmt: skip
BYTES = st.binary(max_size=200) | st.lists(PIECES | st.binary(max_size=5), max_size=40).map(b"".join)
LINES = st.lists(
    st.tuples(TEXT, st.booleans()).map(lambda found: json.dumps({"text": found[0]}, ensure_ascii=found[1]))
    | st.sampled_from(["", "{", '{"text": 3}', '{"text": "\\ud800"}', '["text"]', "null", '{"other": "x"}', "NaN",
                       '{"text": "a"} {"text": "b"}', "[" * 5000, '{"text": ' + "9" * 5000 + "}"]), max_size=12,
)  # fmt: skip


def settings_of(file: Path, errors: str = "strict") -> TextSettings:
    return TextSettings(
        kind="text", train=str(file), validation=None, test=None, field="text", errors=errors,
        validation_fraction=0.2, test_fraction=0.1,
    )  # fmt: skip


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def splits_of(name: str, content: bytes, errors: str = "strict") -> list[str] | None:
    """The text of all splits in their order, each with its documents' ends; None where it is refused in one line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        try:
            corpus = prepare(settings_of(file, errors), ByteSettings(kind="byte"), cache=Path(folder), progress=False)
        except UserError as error:
            refused = message_of(error)
        else:
            splits = [split for split in (corpus.train, corpus.validation, corpus.test) if split is not None]
            return [ByteTokenizer().decode(np.asarray(split.tokens).tolist()) for split in splits]
    # A cut may not make characters invalid that were whole.
    assert "invalid UTF-8" not in refused or name != "text.txt" or not is_text(content)
    return None


@examples(60)
@given(content=BYTES, errors=st.sampled_from(("strict", "replace")))
@example(content=b"", errors="strict")
@example(content=b"\xef\xbb\xbf", errors="strict")
@example(content="\x01\x01\x80".encode(), errors="strict")
@example(content=b"a\n" * 200 + b"\xed\xa0\x80", errors="replace")
def test_a_text_file_comes_back_or_is_refused(content: bytes, errors: str) -> None:
    TRIED["texts"] += 1
    splits = splits_of("text.txt", content, errors)
    if splits is None:
        return
    assert all(split.endswith("<|endoftext|>") for split in splits)
    back = "".join(split.removesuffix("<|endoftext|>") for split in splits)
    if errors == "strict":
        assert back == content.removeprefix(b"\xef\xbb\xbf").decode()
    else:
        # Invalid bytes that a cut parts may be replaced once more.
        wanted = content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
        assert back.replace("�", "") == wanted.replace("�", "")


@examples(30)
@given(lines=LINES, compressed=st.booleans())
def test_lines_of_json_are_read_or_refused_with_their_number(lines: list[str], compressed: bool) -> None:
    TRIED["lines of JSON"] += 1
    content = "\n".join(lines).encode()
    name = "text.jsonl.gz" if compressed else "text.jsonl"
    splits = splits_of(name, gzip.compress(content) if compressed else content)
    if splits is not None:
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
        assert sorted("".join(splits).split("<|endoftext|>")[:-1]) == sorted(filter(None, texts)) or any(
            "<|endoftext|>" in text for text in texts
        )


@examples(30)
@given(content=BYTES, damage=st.integers(0, 400), flip=st.integers(0, 255))
def test_a_damaged_gzip_file_is_refused_or_whole(content: bytes, damage: int, flip: int) -> None:
    TRIED["damaged gzip files"] += 1
    packed = bytearray(gzip.compress(content))
    if flip and damage < len(packed):
        packed[damage] ^= flip
    else:
        del packed[damage:]
    splits = splits_of("text.txt.gz", bytes(packed))
    if splits is not None:
        # A checksum has been met: it is the text (a flip in the header's time changes nothing).
        try:
            whole = gzip.decompress(bytes(packed))
        except (OSError, EOFError):
            pytest.fail("half of a file was taken for all of it")
        assert (
            "".join(split.removesuffix("<|endoftext|>") for split in splits)
            == whole.removeprefix(b"\xef\xbb\xbf").decode()
        )


@pytest.fixture(scope="module")
def tokenizers():
    bpe = train_bpe(
        BPESettings(kind="bpe", vocab_size=300), iter(["attention is energy, and energy is attention\n"] * 20)
    )
    return [ByteTokenizer(), bpe]


@examples(100)
@given(text=TEXT)
@example(text="<|endoftext|>")
@example(text="\r\n\u2028 \x00 é́ 👩‍👩‍👧")
def test_texts_come_back_from_their_tokens(tokenizers, text: str) -> None:
    TRIED["round trips"] += 1
    for tokenizer in tokenizers:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.end_token_id not in tokens
        assert max(tokens, default=0) < tokenizer.vocab_size
        assert [list(each) for each in tokenizer.encode_batch([text, ""])] == [tokens, []]
