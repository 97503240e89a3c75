"""Readers of untrusted JSON and YAML with limits on size and depth, checks of their numbers, and content hashes."""

import errno
import hashlib
import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

MOST_VALUES = 100_000  # per file; the configuration of a run has a few hundred
DEEPEST = 64
MOST_JSON = 16 << 20  # bytes per file; a run of a model with 1000 tensors writes less than 1 MiB
MOST_YAML = 1 << 20  # bytes per file; parsing this many takes a few seconds
_LARGEST = 2**64


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, following links; a pipe would block and a device may be endless.

    Raises: OSError if it is not a regular file or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # otherwise opening a pipe waits for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, most: int) -> str:
    """Return the text of a regular file of at most ``most`` bytes.

    Raises: OSError if it cannot be read, ValueError if it is too large or not UTF-8.
    """
    with open_regular(path) as file:
        # Request no more than the file holds: a buffer of ``most`` bytes may exceed the free memory.
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise ValueError(f"more than {most >> 20} MiB")
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises: OSError and ValueError, like ``read_text`` and ``parsed_json``."""
    return parsed_json(read_text(path, MOST_JSON))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises: OSError and ValueError, like ``read_text`` and ``parsed_yaml``."""
    return parsed_yaml(read_text(path, MOST_YAML))


def parsed_json(text: str) -> Any:
    """Parse JSON.

    Raises: ValueError for invalid JSON, and for nesting beyond Python's recursion limit.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none or it cannot be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def parsed_yaml(text: str) -> Any:
    """Parse YAML made of scalars, lists and mappings with text keys.

    Raises: ValueError for invalid YAML, tags that name Python objects, and content that is too deep or too large
        (aliases can expand exponentially or without end).
    """
    import yaml

    try:
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except Exception as error:  # an invalid date or number raises an exception of any type
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
            raise ValueError("an integer beyond 64 bits")
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"a key that is not text: {wrong[0]!r}")
            waiting.extend((inner, depth + 1) for inner in value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend((inner, depth + 1) for inner in value)


def whole_number(value: Any, *, least: int = -(2**63)) -> int:
    """Return a 64-bit integer that is at least ``least``. Raises: ValueError for anything else."""
    if type(value) is not int or not least <= value < 2**63:  # not isinstance: true is not an integer here
        raise ValueError(f"{shown(value)} is not an integer{f' of at least {least}' if least > -(2**63) else ''}")
    return value


def finite_number(value: Any, *, least: float = -math.inf) -> float:
    """Return a finite float that is at least ``least``. Raises: ValueError for anything else."""
    # An integer may be too large for math.isfinite, but not for a comparison.
    if type(value) not in (int, float) or not (abs(value) <= sys.float_info.max and value >= least):
        raise ValueError(f"{shown(value)} is not a number{f' of at least {least:g}' if math.isfinite(least) else ''}")
    return float(value)


def shown(value: Any) -> str:
    """Format a value for an error message: short and on one line."""
    kind = type(value).__name__
    return kind if isinstance(value, dict | list) else f"{kind} {str(value)[:40]!r}"


def hash_of(content: Any) -> str:
    """Return the SHA-256 of JSON content, in hex, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
