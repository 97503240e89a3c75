"""One line for every way in which a configuration can be wrong: key, value, and what would be valid."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_OPEN = ("directions", "learning_rates")  # sections of an optimizer that hold what its file happens to name
# Of what is no number at all pydantic says more than one wants to read.
_PLAIN = {"float_parsing": "a number", "int_parsing": "a whole number", "bool_parsing": "true or false"}


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The line for a key that nothing reads: the nearest known one, and the keys that stand beside it."""
    parent = key.rpartition(".")[0]
    if parent in known and parent.rpartition(".")[2] in _OPEN:
        return f"{key}: not in this optimizer's file; valid: +{key}=…, which adds it"
    if parent not in known:
        parent = ""
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    return f"{key}: unknown key; {suggestion(key, known, sorted(siblings))}"


def suggestion(word: str, known: Sequence[str], shown: Sequence[str] | None = None) -> str:
    """The known word that is nearest, where one is near, and what is valid: all that are known, or those shown."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    valid = ", ".join(known if shown is None else shown)
    return (f"did you mean {near[0]}? " if near else "") + f"valid: {valid}"


def validation_line(error: Any, values: dict[str, Any], experiments: Path) -> str:
    """One line for a validation error."""
    key, parent = _locate(error["loc"], values)
    if error["type"] == "extra_forbidden":
        last = key.rpartition(".")[2]
        siblings = sorted(str(other) for other in parent if other != last) if isinstance(parent, dict) else []
        return f"{key}: unknown key; {suggestion(last, siblings)}" + _place_in(experiments, last)
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _kind_line(key, error["ctx"])
    message = re.sub(r"^(Input should be|String should|Value error,) ?", "", error["msg"])
    message = _PLAIN.get(error["type"], message)
    value = error["input"]
    shown = f"{key}={value}" if not isinstance(value, dict | list) else key
    return f"{shown}: valid: {message}" if " should " in error["msg"] else f"{shown}: {message}"


def _kind_line(key: str, context: Mapping[str, str]) -> str:
    """A part of the settings whose kind is missing, or is none of those that there are."""
    kind = f"{key}.{context['discriminator'].strip(chr(39))}"
    if "tag" not in context:
        return f"{kind}: missing"
    valid = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
    return f"{kind}={context['tag']}: {suggestion(context['tag'], valid)}"


def _locate(location: Sequence[int | str], values: Any) -> tuple[str, Any]:
    """Dotted key of an error and the mapping it is in: pydantic's path without the tags of unions."""
    path: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(values, dict) and part in values:
            path.append(str(part))
            if not last:
                values = values[part]
        elif isinstance(values, list | tuple) and isinstance(part, int):
            path.append(str(part))
            if not last and part < len(values):
                values = values[part]
        elif last and not (isinstance(values, dict) and part == values.get("kind")):
            path.append(str(part))
    return ".".join(path), values


def _place_in(experiments: Path, key: str) -> str:
    """Return where an experiment file names a key, for outdated files: " (experiment/quick.yaml, line 3)"."""
    for path in sorted(experiments.glob("*.yaml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.match(rf"\s*{re.escape(key)}\s*:", line):
                return f" (experiment/{path.name}, line {number})"
    return ""


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an error, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
