"""Checks of the values in run.json: the right type, finite, and printable text."""

from collections.abc import Mapping
from typing import Any

from natattn.storage.documents import finite_number, shown, whole_number
from natattn.storage.redaction import one_line

MOST_LETTERS = 300


def text(value: Any) -> str:
    """A text on one line, cut where it is too long for a table. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is no text")
    line = one_line(value)
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]}…"


def optional_text(value: Any) -> str | None:
    """Return a text, or None for null."""
    return None if value is None else text(value)


def name(value: Any) -> str:
    """A text that metrics are found by, so that it is what it is, or an error. Raises ValueError."""
    if text(value) != value:
        raise ValueError(f"{shown(value)} is no name")
    return str(value)


def whole(value: Any) -> int | None:
    """A whole number of 64 bits, or null. Raises ValueError for anything else."""
    return None if value is None else whole_number(value)


def number(value: Any) -> float | None:
    """A finite number, or null. Raises ValueError for anything else."""
    return None if value is None else finite_number(value)


def known(value: float | None, what: str) -> float:
    """A number that must be there. Raises ValueError."""
    if value is None:
        raise ValueError(f"{what} is not known")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is no object")
    return value
