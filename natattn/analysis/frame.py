"""The form of an analysis question, and JSON that is read back as the result it was written from.

A question is one module in ``questions/``. It measures a subject (a model, or a set of runs), and returns a frozen
dataclass: its result. Its section shows the result on a page, and its verdict, if it bears on a claim, concludes from
the results of several models. All three read the fields of the result, never a heading of a page.
"""

import base64
import math
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from natattn.analysis.settings import AnalyzeSettings
from natattn.report.section import Advance, Section
from natattn.storage.documents import shown

S = TypeVar("S")
R = TypeVar("R")


def _always(subject: object) -> bool:
    return True


@dataclass(frozen=True)
class Question(Generic[S, R]):
    """One question that `natattn analyze` answers about a subject.

    Attributes:
        result: the frozen dataclass that ``measure`` returns.
        measure: answers the question; its third argument is called with the number of steps completed.
        section: findings, tables and pictures of a result, for the page.
        applies: whether a subject has what the question needs.
        reads_models: whether trained weights are needed, and not only the files of the runs.
    """

    result: type[R]
    measure: Callable[[S, AnalyzeSettings, Advance], R]
    section: Callable[[R], Section]
    applies: Callable[[S], bool] = _always
    reads_models: bool = True


_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(value: Any) -> Any:
    """Return a result as strict JSON: dataclasses become objects, tuples lists; nan, inf and -inf become words."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def from_json(kind: Any, content: Any, where: str = "result") -> Any:
    """Return the value of type ``kind`` that ``to_json`` wrote.

    Types: dataclasses, tuples (also of any length), dictionaries with keys of str or int, unions, literals, float, int,
    bool, str and None.

    Raises: ValueError naming the field (``where``) that is missing, unknown, or of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = {field.name for field in fields(kind)}
        if not isinstance(content, dict) or set(content) != names:
            found = set(content) if isinstance(content, dict) else set()
            missing, unknown = sorted(names - found), sorted(found - names)
            raise ValueError(f"{where}: {shown(content)}: missing fields {missing}, unknown fields {unknown}")
        assert isinstance(kind, type)
        return kind(**{name: from_json(hints[name], content[name], f"{where}.{name}") for name in names})
    if origin is tuple and isinstance(content, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(content))
        if len(arguments) == len(content):
            pairs = zip(arguments, content, strict=True)
            return tuple(from_json(of, item, f"{where}[{i}]") for i, (of, item) in enumerate(pairs))
    if origin is dict and isinstance(content, dict):
        return {
            from_json(arguments[0], int(key) if arguments[0] is int else key, where): from_json(
                arguments[1], item, f"{where}.{key}"
            )
            for key, item in content.items()
        }
    if origin in (Union, types.UnionType):
        for of in sorted(arguments, key=lambda of: of is str):  # "nan" is a number wherever a number may be
            try:
                return from_json(of, content, where)
            except ValueError:
                continue
    if origin is Literal and content in arguments:
        return content
    if kind is float and (type(content) in (int, float) or (isinstance(content, str) and content in _WORDS)):
        return _WORDS[content] if isinstance(content, str) else float(content)
    if kind in (int, bool, str, types.NoneType) and type(content) is kind:
        return content
    if kind is bytes and isinstance(content, str):
        return base64.b64decode(content, validate=True)
    raise ValueError(f"{where}: {shown(content)} is not {getattr(kind, '__name__', kind)}")
