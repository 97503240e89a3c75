"""JSON and YAML that anyone may have written, as plain content: bounded in size and depth, and nothing else.

Also the files that it is read from, what a number in it may be, and its hash.
"""

import errno
import hashlib
import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

MOST_VALUES = 100_000  # of a file; a run's configuration has some hundred
DEEPEST = 64
MOST_JSON = 16 << 20  # bytes of a file; what a run writes of a model with 1000 tensors has less than one MiB
MOST_YAML = 1 << 20  # parsing takes some seconds
_LARGEST = 2**64


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to be read, also behind links: a pipe would make the reader wait, a device may have no end.

    Raises: OSError for what is none, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe waits for its writer otherwise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, most: int) -> str:
    """The text of a regular file of at most so many bytes.

    Raises: OSError where it cannot be read, ValueError for what is too large or not UTF-8.
    """
    with open_regular(path) as file:
        # No more is asked for than is there: a buffer of ``most`` may be more memory than is left.
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise ValueError(f"more than {most >> 20} MiB")
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises: OSError and ValueError, as ``read_text`` and ``parsed_json``."""
    return parsed_json(read_text(path, MOST_JSON))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises: OSError and ValueError, as ``read_text`` and ``parsed_yaml``."""
    return parsed_yaml(read_text(path, MOST_YAML))


def parsed_json(text: str) -> Any:
    """The content of JSON.

    Raises: ValueError for what is none, also where it is nested more deeply than Python follows.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def parsed_yaml(text: str) -> Any:
    """The content of YAML: texts, numbers and the like, in lists and in mappings whose keys are texts.

    Raises: ValueError for what is none, for tags that name Python objects, and for content that is too deep or too
        large: aliases make it grow exponentially with the file, or without an end.
    """
    import yaml

    try:
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except Exception as error:  # a date or a number that is none raises whatever its reader does
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    _check_bounded(content)
    return content


def _check_bounded(content: Any) -> None:
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ValueError(f"more than {MOST_VALUES:,} values" if depth <= DEEPEST else "nested too deeply")
        if isinstance(value, int) and abs(value) >= _LARGEST:
            raise ValueError("a whole number beyond 64 bits")
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"a key that is no text: {wrong[0]!r}")
            waiting.extend((inner, depth + 1) for inner in value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend((inner, depth + 1) for inner in value)


def whole_number(value: Any, *, least: int = -(2**63)) -> int:
    """A whole number of 64 bits, not below ``least``. Raises: ValueError for anything else."""
    if type(value) is not int or not least <= value < 2**63:  # not isinstance: true is none
        raise ValueError(f"{shown(value)} is no whole number{f' from {least} on' if least > -(2**63) else ''}")
    return value


def finite_number(value: Any, *, least: float = -math.inf) -> float:
    """A number that a float can hold, not below ``least``. Raises: ValueError for anything else."""
    # A whole number may be too large for math.isfinite, but not for a comparison.
    if type(value) not in (int, float) or not (abs(value) <= sys.float_info.max and value >= least):
        raise ValueError(f"{shown(value)} is no number{f' from {least:g} on' if math.isfinite(least) else ''}")
    return float(value)


def shown(value: Any) -> str:
    """A value in an error's message: short, on one line, also of what is nested too deeply to be shown."""
    kind = type(value).__name__
    return kind if isinstance(value, dict | list) else f"{kind} {str(value)[:40]!r}"


def hash_of(content: Any) -> str:
    """SHA-256 of JSON content, in hex; the order of an object's keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
