"""What run.json may say, value by value: of the right type, finite, and text that no terminal or page stumbles over."""

import sys
from collections.abc import Mapping
from typing import Any

from natattn.redaction import one_line

MOST_LETTERS = 300


def text(value: Any) -> str:
    """A text on one line, cut where it is too long for a table. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is no text")
    line = one_line(value)
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]}…"


def optional_text(value: Any) -> str | None:
    """The same, or null."""
    return None if value is None else text(value)


def name(value: Any) -> str:
    """A text that metrics are found by, so that it is what it is, or an error. Raises ValueError."""
    if text(value) != value:
        raise ValueError(f"{_shown(value)} is no name")
    return str(value)


def whole(value: Any) -> int | None:
    """A whole number of 64 bits, or null. Raises ValueError for anything else."""
    if value is None or (type(value) is int and abs(value) < 2**63):  # not isinstance: true is none
        return value
    raise ValueError(f"{_shown(value)} is no whole number")


def number(value: Any) -> float | None:
    """A finite number, or null. Raises ValueError for anything else."""
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # nor is nan
        raise ValueError(f"{_shown(value)} is no number")
    return float(value)


def known(value: float | None, what: str) -> float:
    """A number that must be there. Raises ValueError."""
    if value is None:
        raise ValueError(f"{what} is not known")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{_shown(value)} is no object")
    return value


def _shown(value: Any) -> str:
    """Short, on one line, also of what is nested too deeply to be shown."""
    kind = type(value).__name__
    return kind if isinstance(value, dict | list) else f"{kind} {one_line(str(value)[:40])!r}"
