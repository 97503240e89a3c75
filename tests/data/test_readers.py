import gzip
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from natattn.data.text import readers
from natattn.data.text.readers import cut_pieces, format_of, jsonl_documents, parquet_documents, text_pieces
from natattn.errors import UserError


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.txt", ".txt"), ("a.TXT.gz", ".txt"), ("a.jsonl.gz", ".jsonl"), ("a.b.parquet", ".parquet"), ("a.csv", None)],
)
def test_formats(name: str, expected: str | None) -> None:
    assert format_of(Path(name)) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_text_is_read_whole_whatever_the_chunks(
    tmp_path: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    text = "héllo wörld 日本\r\n𝔘 end\n" * 5
    path = write(tmp_path / name, text.encode())
    assert "".join(text_pieces(path, "strict")) == text
    assert "".join(text_pieces(path, "strict", 7, 14)) == text.encode()[7:14].decode()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert "".join(text_pieces(write(tmp_path / "a.txt", "\ufeffabc".encode()), "strict")) == "abc"
    lines = write(tmp_path / "a.jsonl", '\ufeff{"text": "abc"}\n'.encode())
    assert list(jsonl_documents(lines, "text", "strict")) == ["abc"]


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_invalid_utf8_is_located(tmp_path: Path, chunk: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    path = write(tmp_path / name, "é one\ntwo\nthr".encode() + b"\xff" + b"ee\n")
    with pytest.raises(UserError, match=rf"{name}: invalid UTF-8 at byte 14 \(line 3\); use data\.errors=replace"):
        list(text_pieces(path, "strict"))
    assert "".join(text_pieces(path, "replace")) == "é one\ntwo\nthr\ufffdee\n"


def test_a_character_cut_off_by_the_end_is_located(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abc\n\xe6\x97")
    with pytest.raises(UserError, match=r"byte 4 \(line 2\)"):
        list(text_pieces(path, "strict"))
    assert "".join(text_pieces(path, "replace")) == "abc\n\ufffd"


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_binary_files_are_refused(tmp_path: Path, errors: readers.Errors) -> None:
    with pytest.raises(UserError, match=r"a\.txt: a binary file \(NUL at byte 3\)"):
        list(text_pieces(write(tmp_path / "a.txt", b"abc\0def"), errors))
    with pytest.raises(UserError, match=r"a\.jsonl: a binary file \(NUL at byte 14\)"):
        list(jsonl_documents(write(tmp_path / "a.jsonl", b'{"text": "a"}\n\0\n'), "text", errors))


def test_broken_gzip_files_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text " * 1000)
    for content in (b"not gzip", whole[: len(whole) // 2]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.txt\.gz: not a complete gzip file"):
            list(text_pieces(tmp_path / "a.txt.gz", "strict"))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read \(No such file"):
        list(text_pieces(tmp_path / "gone.txt", "strict"))


def test_pieces_are_bounded_and_cut_between_words() -> None:
    text = "some words of text\n" * 20_000
    pieces = list(cut_pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1 << 16
    for left, right in itertools.pairwise(pieces):
        assert left[-1].isalnum()
        assert right[0] == " "


def test_text_without_words_is_cut_all_the_same() -> None:
    text = "x" * 200_000
    assert [len(piece) for piece in cut_pieces(text)] == [65_536, 65_536, 65_536, 3392]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    content = '{"text": "one\\ntwo", "id": 1}\n\n{"text": "日本"}\n{"text": ""}'
    path = write(tmp_path / name, content.encode())
    assert list(jsonl_documents(path, "text", "strict")) == ["one\ntwo", "日本", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", r"a\.jsonl:2: not a line of JSON"),
        (b"[1]", r"a\.jsonl:2: a JSON list, not an object with the field 'text'"),
        (b'{"body": "x", "id": 3}', r"a\.jsonl:2: no field 'text'; data\.field can be body, id"),
        (b'{"text": 3}', r"a\.jsonl:2: field 'text' holds int, not text"),
        (b'{"text": "\xff"}', r"a\.jsonl: invalid UTF-8 at byte 25 \(line 2\)"),
        (b'{"text": "a\\ud800"}', r"a\.jsonl:2: invalid UTF-8 at byte 1 of the text"),
    ],
)
def test_bad_json_lines_are_located(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "ab"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        list(jsonl_documents(path, "text", "strict"))


def test_half_surrogates_in_json_can_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a\\ud800b"}\n')
    (text,) = jsonl_documents(path, "text", "replace")
    assert text.encode()
    assert text[0] + text[-1] == "ab"


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")])
@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_parquet(tmp_path: Path, kind: pyarrow.DataType, name: str) -> None:
    column = pyarrow.array(["one", None, "日本", "one"], type=pyarrow.string()).cast(kind)
    table = pyarrow.table({"id": [1, 2, 3, 4], "body": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    if name.endswith(".gz"):
        write(tmp_path / name, (tmp_path / "a.parquet").read_bytes())
    assert list(parquet_documents(tmp_path / name, "body", "strict")) == ["one", "日本", "one"]


def test_bad_parquet_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"abc\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": bad}), path)
    with pytest.raises(UserError, match=r"a\.parquet: no column 'body'; data\.field can be id, text"):
        list(parquet_documents(path, "body", "strict"))
    with pytest.raises(UserError, match=r"a\.parquet: column 'id' holds int64, not text"):
        list(parquet_documents(path, "id", "strict"))
    with pytest.raises(UserError, match=r"a\.parquet: row 2: invalid UTF-8 at byte 1"):
        list(parquet_documents(path, "text", "strict"))
    assert list(parquet_documents(path, "text", "replace")) == ["ab", "c\ufffd"]
    write(path, json.dumps({"not": "parquet"}).encode())
    with pytest.raises(UserError, match=r"a\.parquet: not a readable parquet file"):
        list(parquet_documents(path, "text", "strict"))
