"""The metrics file of a run: one JSON object per line, appended during training and read back as columns."""

import contextlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from natattn.errors import ResourceError, UserError
from natattn.storage.atomic import what_to_mend
from natattn.storage.documents import open_regular
from natattn.tracking import Record

FILE_NAME = "metrics.jsonl"

# Strict JSON cannot represent these, so they are written as strings.
_NON_FINITE = {"nan", "inf", "-inf"}
_FIELDS = itemgetter(*Record._fields)
_LARGEST = 2**63
# Bytes of whole lines to read at a time: large enough for speed, small enough to bound the memory.
_READ_BYTES = 1 << 22


class NoMetricsFile:
    """The metrics file of ranks that do not write."""

    def log(self, records: Sequence[Record]) -> None:
        """Do nothing: the first rank writes the records."""

    def flush(self) -> None:
        """Do nothing."""

    def position(self) -> int:
        """Return 0."""
        return 0


class MetricsFile:
    """A context manager that appends records to a metrics file.

    `truncate_at` is the `position()` stored in a checkpoint: everything that a killed run wrote after it is removed.
    Without it only an incomplete last line is removed.

    Raises: ResourceError if the file cannot be written (a full disk), UserError if the position does not fit the file.
    """

    def __init__(self, path: Path, *, truncate_at: int | None = None) -> None:
        self._path = Path(path)
        self._truncate_at = truncate_at
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            os.truncate(self._path, _end_of_valid_lines(self._path, self._truncate_at))
            self._file = open(self._path, "ab")
        except OSError as error:
            self._fail(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except UserError:
            if error is None:  # otherwise report the first error
                raise
        finally:
            self._close()

    def log(self, records: Sequence[Record]) -> None:
        """Append records; the next `flush` makes them durable."""
        try:
            self._open_file().write(b"".join(_encode(record) for record in records))
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        """Write everything logged so far to the disk."""
        file = self._open_file()
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            self._fail(error)

    def position(self) -> int:
        """Flush, and return the size in bytes, which a checkpoint stores and a resumed run truncates the file to."""
        self.flush()
        return self._open_file().tell()

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError(f"{self._path} is not open: use `with MetricsFile(...)`")
        return self._file

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # the unwritten buffer, which flush has reported
                file.close()

    def _fail(self, error: OSError) -> NoReturn:
        raise ResourceError(f"{self._path}: {error.strerror or error}", mend=what_to_mend(error)) from error


@dataclass(frozen=True)
class Metrics:
    """The columns of a metrics file, all of the same length, in the order of the file."""

    step: NDArray[np.int64]
    arm: NDArray[np.object_]  # str, or None for records of the whole run
    name: NDArray[np.object_]
    value: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def select(
        self, *, arm: str | None, name: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return steps, values and seconds of one series; `arm=None` selects a series of the whole run."""
        # Object arrays compare elementwise, so `== None` selects the records without an arm.
        chosen = (self.name == name) & (self.arm == arm)
        return self.step[chosen], self.value[chosen], self.seconds[chosen]

    def names(self) -> list[str]:
        """Return the distinct names, sorted."""
        return sorted(set(self.name))

    def arms(self) -> list[str]:
        """Return the distinct arms, in order of appearance."""
        return [arm for arm in dict.fromkeys(self.arm) if arm is not None]


def read_metrics(path: Path) -> Metrics:
    """Read a metrics file into columns, without an incomplete last line.

    Raises: UserError naming file and line if another line is not a metrics record, or if the file cannot be read.
    """
    columns = _Columns()
    line_number = 1
    try:
        with open_regular(path) as file:
            while lines := file.readlines(_READ_BYTES):
                if not lines[-1].endswith(b"\n") and not _is_record(lines[-1]):
                    lines.pop()
                columns.extend(lines, path, line_number)
                line_number += len(lines)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return columns.metrics()


class _Columns:
    """Columns that grow in chunks, with one string object per distinct arm and name."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Any, ...]] = []
        self._known: dict[str | None, str | None] = {}

    def extend(self, lines: list[bytes], path: Path, first_line: int) -> None:
        if not lines:
            return
        try:
            rows = _decode_lines(lines)
        except _NOT_A_RECORD:
            raise UserError(_broken_line(lines, path, first_line)) from None
        step, arm, name, value, seconds = zip(*rows, strict=True)
        known = self._known
        self._chunks.append(
            (
                np.array(step, dtype=np.int64),
                np.array([known.setdefault(each, each) for each in arm], dtype=object),
                np.array([known.setdefault(each, each) for each in name], dtype=object),
                np.array(value, dtype=np.float64),  # also parses "nan", "inf" and "-inf"
                np.array(seconds, dtype=np.float64),
            )
        )

    def metrics(self) -> Metrics:
        kinds = (np.int64, object, object, np.float64, np.float64)
        chunks = self._chunks or [tuple(np.empty(0, dtype=kind) for kind in kinds)]
        return Metrics(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


def _encode(record: Record) -> bytes:
    value = float(record.value)
    line = {
        "step": int(record.step),
        "arm": record.arm,
        "name": record.name,
        "value": value if math.isfinite(value) else str(value),
        "seconds": round(float(record.seconds), 6),
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")


_NOT_A_RECORD = (ValueError, KeyError, TypeError, RecursionError)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _decode_lines(lines: list[bytes]) -> list[tuple[Any, ...]]:
    """Decode the lines as one JSON array, which is several times faster than line by line."""
    rows = [_FIELDS(each) for each in _DECODER.decode(f"[{b','.join(lines).decode()}]")]
    if len(rows) != len(lines) or not all(each[:1] == b"{" and each.rstrip()[-1:] == b"}" for each in lines):
        raise ValueError("a line is not exactly one record")
    _check_rows(rows)
    return rows


def _check_rows(rows: list[tuple[Any, ...]]) -> None:
    """Raise ValueError if a field has the wrong type."""
    for step, arm, name, value, seconds in rows:
        if type(step) is not int or not 0 <= step < _LARGEST or type(name) is not str:
            raise ValueError("step or name")
        if arm is not None and type(arm) is not str:
            raise ValueError("arm")
        if not _is_number(value) and value not in _NON_FINITE:
            raise ValueError("value")
        if not _is_number(seconds):
            raise ValueError("seconds")


def _is_number(value: Any) -> bool:
    # Not isinstance, which accepts bool. Integers beyond a float's exponent range are excluded too.
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST)


def _is_record(line: bytes) -> bool:
    try:
        _decode_lines([line])
    except _NOT_A_RECORD:
        return False
    return True


def _broken_line(lines: list[bytes], path: Path, first_line: int) -> str:
    for number, line in enumerate(lines, start=first_line):
        if not _is_record(line):
            shown = line.decode(errors="replace").strip()
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            return f"{path}:{number}: not a metrics record: {shown!r} (valid: {', '.join(Record._fields)} as JSON)"
    raise AssertionError(f"{path}:{first_line}: all lines are records, but they cannot be decoded together")


def check_position(path: Path, position: int) -> None:
    """Raise UserError if a checkpoint's `position` does not fit the file; change nothing."""
    try:
        if position:
            _end_of_valid_lines(path, position)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the checkpoint refers to {position} bytes of it") from None


def _end_of_valid_lines(path: Path, truncate_at: int | None) -> int:
    """Return the size to truncate the file to before appending."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        if truncate_at is None:
            return _after_last_newline(file, size)
        if truncate_at > size:
            raise UserError(f"{path} has {size} bytes, fewer than the checkpoint's {truncate_at}: it was changed")
        if truncate_at > 0:
            file.seek(truncate_at - 1)
            if file.read(1) != b"\n":
                raise UserError(f"{path}: the checkpoint's position {truncate_at} is inside a line: it was changed")
        return truncate_at


def _after_last_newline(file: BinaryIO, size: int, block: int = 1 << 16) -> int:
    end = size
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
