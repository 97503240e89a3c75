"""Readers of text files: .txt as one document in pieces, .jsonl and .parquet as many, each optionally gzipped."""

import codecs
import contextlib
import gzip
import hashlib
import io
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.storage.documents import parsed_json

Errors = Literal["strict", "replace"]

FORMATS = (".txt", ".jsonl", ".parquet")

_CHUNK = 1 << 20  # bytes read at a time
_LONGEST_LINE = 1 << 28  # bytes of a line of .jsonl, because a line is held in memory
_ANY_UNPACKED = 1 << 28  # bytes that any gzip file may expand to
_MOST_UNPACKED_TIMES = 200  # natural text expands threefold, repeated lines a hundredfold
_PIECE = 1 << 16  # characters per piece
_WORD_BOUNDARY = re.compile(r"\w(?= \w)")
_BOUNDARY_SEARCH = 4096  # characters at the end of a piece that are searched for a word boundary


def format_of(path: Path) -> str | None:
    """Return `.txt`, `.jsonl` or `.parquet`, ignoring a final `.gz`; None for any other extension."""
    name = path.name.lower().removesuffix(".gz")
    return next((extension for extension in FORMATS if name.endswith(extension)), None)


def is_gzipped(path: Path) -> bool:
    """Return whether the file name marks compressed content."""
    return path.name.lower().endswith(".gz")


def content_digest(path: Path) -> bytes:
    """Return a hash of the stored bytes of a file. Raises: UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error) from error


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading decompressed bytes. Raises: UserError if it cannot be read or decompressed."""
    try:
        with gzip.open(path) if is_gzipped(path) else open(path, "rb") as file:
            yield cast(IO[bytes], io.BufferedReader(_Unpacked(path, file), _CHUNK) if is_gzipped(path) else file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file ({error})") from error
    except OSError as error:
        raise _unreadable(path, error) from error


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, limited to what text can expand to.

    Raises: UserError if the limit is exceeded: a file of a megabyte could fill the disk.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._most = max(_ANY_UNPACKED, _MOST_UNPACKED_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        if self._file.tell() > self._most:
            raise UserError(
                f"{self._path}: unpacks to more than {_MOST_UNPACKED_TIMES} times its size, which text does not; "
                "unpack it yourself if it is to be read"
            )
        return len(found)

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._file.seek(position, whence))


def text_size(path: Path) -> int:
    """Return the size of a text file in bytes, decompressed."""
    if not is_gzipped(path):
        try:
            return path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error
    with open_bytes(path) as file:
        return sum(map(len, iter(lambda: file.read(_CHUNK), b"")))


def text_pieces(path: Path, errors: Errors, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Yield bytes start … stop - 1 of a UTF-8 file as pieces that end between words, without a byte order mark.

    Raises: UserError naming position and line, at invalid UTF-8 (unless errors=replace) and at a NUL byte.
    """
    with open_bytes(path) as file:
        file.seek(start)
        position, undecoded, text = start, b"", ""
        while chunk := file.read(_CHUNK if stop is None else min(_CHUNK, stop - position - len(undecoded))):
            data = undecoded + chunk
            if position == 0:
                bare = data.removeprefix(codecs.BOM_UTF8)
                position, data = len(data) - len(bare), bare
            decoded, used = _decode(path, data, position, errors, final=False)
            text, position, undecoded = text + decoded, position + used, data[used:]
            *pieces, text = cut_pieces(text)
            yield from pieces
        yield from cut_pieces(text + _decode(path, undecoded, position, errors, final=True)[0])


def cut_pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of bounded length; all but the last end between words.

    Tokenizers see each piece separately. All byte-level BPEs also split between "word" and " word", so their tokens
    equal those of the whole text; a SentencePiece model may differ at the start of a piece, once in 65,536 characters.
    """
    start = 0
    while len(text) - start > _PIECE:
        stop = start + _PIECE
        boundaries = [match.end() for match in _WORD_BOUNDARY.finditer(text, stop - _BOUNDARY_SEARCH, stop)]
        stop = boundaries[-1] if boundaries else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def jsonl_documents(path: Path, field: str, errors: Errors) -> Iterator[str]:
    """Yield the string under `field` of each non-blank line. Raises: UserError naming file and line."""
    for place, entry in jsonl_entries(path, f"the field {field!r}", errors):
        yield _field_of(place, entry, field, errors)


def jsonl_entries(path: Path, wanted: str, errors: Errors) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", JSON object) for each non-blank line; `wanted` describes the expected keys in messages.

    Raises: UserError naming file and line.
    """
    position = 0
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if len(line) == _LONGEST_LINE:
                raise UserError(f"{path}:{number}: a line of more than {_LONGEST_LINE >> 20} MiB. Use shorter lines")
            text = _decode(path, line, position, errors, final=True)[0]
            position += len(line)
            text = text.removeprefix("\ufeff") if number == 1 else text  # a byte order mark
            if text.strip():
                yield f"{path}:{number}", _entry_of(f"{path}:{number}", text, wanted)


def parquet_documents(path: Path, field: str, errors: Errors) -> Iterator[str]:
    """Yield the non-null values of the text column `field`. Raises: UserError naming file and row."""
    import pyarrow
    import pyarrow.parquet

    row = 0
    with _seekable(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if field not in table.schema_arrow.names:
                raise UserError(f"{path}: no column {field!r}; data.field can be {_names(table.schema_arrow.names)}")
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                # As bytes, so that invalid UTF-8 is detected here rather than inside pyarrow.
                for value in _bytes_of(batch.column(0), path, field).to_pylist():
                    row += 1
                    if value is not None:
                        yield _decode_value(value, f"{path}: row {row}", errors)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from error


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for fast seeking, which gzip does not support."""
    with open_bytes(path) as file:
        if not is_gzipped(path):
            yield file
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(file, unpacked, _CHUNK)
            unpacked.seek(0)
            yield unpacked


def _bytes_of(column: Any, path: Path, field: str) -> Any:
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
        raise UserError(f"{path}: column {field!r} holds {kind}, not text; data.field names a column of strings")
    return column.cast(kind).cast(pyarrow.large_binary())


def _entry_of(place: str, line: str, wanted: str) -> dict[str, Any]:
    try:
        entry = parsed_json(line)
    except ValueError as error:
        raise UserError(f"{place}: not a line of JSON ({first_line(error)})") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place}: a JSON {type(entry).__name__}, not an object with {wanted}")
    return entry


def _field_of(place: str, entry: dict[str, Any], field: str, errors: Errors) -> str:
    if field not in entry:
        raise UserError(f"{place}: no field {field!r}; data.field can be {_names(entry)}")
    if not isinstance(value := entry[field], str):
        raise UserError(f"{place}: field {field!r} holds {type(value).__name__}, not text")
    # JSON can contain half a surrogate pair, which is not a character and has no UTF-8 encoding.
    return _decode_value(value.encode("utf-8", "surrogatepass"), place, errors)


def _decode_value(value: bytes, place: str, errors: Errors) -> str:
    try:
        return value.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: invalid UTF-8 at byte {error.start} of the text; use data.errors=replace to continue"
        ) from error


def _decode(path: Path, data: bytes, position: int, errors: Errors, *, final: bool) -> tuple[str, int]:
    """Return (text, bytes used) of data at `position`; without `final` the end may be an incomplete character."""
    if (nul := data.find(b"\0")) >= 0:
        raise UserError(f"{path}: a binary file (NUL at byte {position + nul}); text must be UTF-8")
    try:
        return codecs.utf_8_decode(data, errors, final)
    except UnicodeDecodeError as error:
        place = position + error.start
        raise UserError(
            f"{path}: invalid UTF-8 at byte {place} (line {_line_of(path, place)}); use data.errors=replace to continue"
        ) from error


def _line_of(path: Path, position: int) -> int:
    """Return the line number, from 1, of a byte."""
    lines = 1
    with open_bytes(path) as file:
        while position > 0 and (chunk := file.read(min(_CHUNK, position))):
            lines += chunk.count(b"\n")
            position -= len(chunk)
    return lines


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error})")


def _names(names: Any) -> str:
    return ", ".join(map(str, names)) or "nothing: there are none"
