"""Results are read back from JSON as themselves, and refused if a field is missing, unknown or of another type."""

import json
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest

from natattn.analysis.frame import from_json, to_json


@dataclass(frozen=True)
class Inner:
    value: float
    name: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    many: tuple[Inner, ...]
    pair: tuple[int, float]
    maybe: Inner | None
    by_layer: dict[int, tuple[float, ...]]
    cell: str | float | int | None
    is_whole: bool


RESULT = Outer((Inner(1.5), Inner(math.inf, "b")), (3, -math.inf), None, {0: (1.0, 2.0), 7: ()}, "text", True)


@pytest.mark.parametrize(
    "result",
    [RESULT, replace(RESULT, maybe=Inner(0.1 + 0.2), cell=None), replace(RESULT, cell=2), replace(RESULT, cell=2.5)],
)
def test_results_are_read_back_as_themselves(result):
    text = json.dumps(to_json(result), allow_nan=False)
    assert from_json(Outer, json.loads(text)) == result


def test_nan_is_a_word_and_numbers_of_numpy_are_plain():
    written = to_json(Inner(np.float64("nan")))
    assert written == {"value": "nan", "name": "a"}
    assert math.isnan(from_json(Inner, written).value)
    assert type(to_json((np.float64(1.0), np.int64(2)))[1]) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("pair"), r"result: .*missing fields \['pair'\]"),
        (lambda content: content["many"][1].pop("name"), r"result\.many\[1\]: .*missing fields \['name'\]"),
        (lambda content: content.update(other=1), r"unknown fields \['other'\]"),
        (lambda content: content["many"][0].update(value="1.5"), r"result\.many\[0\]\.value: .* is not float"),
        (lambda content: content["many"][0].update(value=None), r"result\.many\[0\]\.value: .* is not float"),
        (lambda content: content["many"][0].update(name="c"), r"result\.many\[0\]\.name"),
        (lambda content: content.update(pair=[1]), r"result\.pair"),
        (lambda content: content.update(pair=[True, 1.0]), r"result\.pair\[0\]: .* is not int"),
        (lambda content: content.update(is_whole=1), r"result\.is_whole: .* is not bool"),
        (lambda content: content.update(many={}), r"result\.many"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    content = to_json(RESULT)
    change(content)
    with pytest.raises(ValueError, match=message):
        from_json(Outer, content)
