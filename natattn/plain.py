"""JSON and YAML that anyone may have written, as plain content: bounded in size and depth, and nothing else.

Also what a number in it may be, and its hash.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

MOST_VALUES = 100_000  # of a file; a run's configuration has some hundred
DEEPEST = 64
_LARGEST = 2**64


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
        content = parsed_json(path.read_text(encoding="utf-8"))
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
