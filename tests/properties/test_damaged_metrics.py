"""Whatever a metrics file holds: nothing crashes, a report changes nothing, and no whole record is lost."""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from property_tools import TRIED, examples, message_of, run

from natattn.errors import UserError
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile, read_metrics

NAMES = st.sampled_from(
    ["validation/loss", "train/loss", "diverged", "time/train_seconds", "test/loss", "x", "é\u202e"]
)
VALUES: st.SearchStrategy[Any] = st.floats(-1e6, 1e6) | st.sampled_from(
    ["nan", "inf", "-inf", 1e308, -1e308, 5e-324, 0]
)
RECORDS = st.fixed_dictionaries(
    {
        "step": st.integers(0, 700) | st.sampled_from([0, 2**62, 2**63 - 1]),
        "arm": st.sampled_from(["standard", "natural", None, "other"]),
        "name": NAMES,
        "value": VALUES,
        "seconds": st.floats(0, 1e9),
    }
)
GOOD = RECORDS.map(json.dumps).map(str.encode)
WRONG_FIELDS = st.sampled_from(
    [("step", "3"), ("step", -1), ("step", 1.5), ("step", True), ("step", 2**63), ("arm", 3), ("arm", ["natural"]),
     ("name", None), ("value", None), ("value", True), ("value", "1.0"), ("value", 10**400), ("seconds", "inf")]
)  # fmt: skip
BAD = st.tuples(RECORDS, WRONG_FIELDS).map(lambda found: json.dumps(found[0] | dict([found[1]])).encode()) | (
    st.sampled_from([b"", b"{", b"null", b"[]", b"NaN", b"hello", b"\xff\xfe", b"\0", b"[" * 4000, b'{"a": ' * 4000,
                     b'{"step": 1}', b"{}, {}", b"9" * 5000, b"<<<<<<< HEAD", b" "])
    | st.binary(max_size=20).filter(lambda line: b"\n" not in line)
)  # fmt: skip
FILES = st.lists(GOOD | GOOD | GOOD | BAD, max_size=12)


def is_record(line: bytes) -> bool:
    """By the definition in docs/, not by the code under test."""
    try:
        found = json.loads(line, parse_constant=lambda token: None)
        fields = [found[key] for key in ("step", "arm", "name", "value", "seconds")]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    step, arm, name, value, seconds = fields
    numbers = [each for each in (value, seconds) if not (each is value and value in ("nan", "inf", "-inf"))]
    return (
        isinstance(found, dict)
        and type(step) is int
        and 0 <= step < 2**63
        and (arm is None or isinstance(arm, str))
        and isinstance(name, str)
        and all(type(each) is float or (type(each) is int and abs(each) < 2**63) for each in numbers)
        and all(math.isfinite(each) for each in numbers)
    )


@examples(60)
@given(lines=FILES, ends=st.booleans())
@example(lines=[b'{"step": 1, "arm": null, "name": "x", "value": 1, "seconds": 1}'] * 2, ends=False)
@example(lines=[b"[" * 100_000], ends=True)
def test_records_are_read_in_full_or_the_line_is_named(lines: list[bytes], ends: bool) -> None:
    TRIED["metrics files read"] += 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(b"\n".join(lines) + b"\n" * (ends and bool(lines)))
        kept = lines if ends or not lines or is_record(lines[-1]) else lines[:-1]
        try:
            metrics = read_metrics(path)
        except UserError as error:
            message = message_of(error)
        else:
            assert all(map(is_record, kept))
            assert metrics.step.tolist() == [json.loads(line)["step"] for line in kept]
            return
        number = int(message.removeprefix(f"{path}:").partition(":")[0])
        assert not is_record(kept[number - 1])
        assert all(map(is_record, kept[: number - 1]))


@examples(60)
@given(lines=FILES, cut=st.integers(0, 500), place=st.none() | st.integers(0, 500))
def test_going_on_keeps_every_line_before_the_checkpoint(lines: list[bytes], cut: int, place: int | None) -> None:
    TRIED["metrics files gone on with"] += 1
    content = b"".join(line + b"\n" for line in lines)
    content = content[: len(content) - cut] if cut < len(content) else content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(content)
        try:
            with MetricsFile(path, truncate_at=place) as file:
                file.log([Record(1, "natural", "train/loss", 1.0, 1.0)])
        except UserError:
            assert path.read_bytes() == content
            return
        found = path.read_bytes()
        kept, last = found[: found.rindex(b"\n", 0, -1) + 1] if found.count(b"\n") > 1 else b"", found.splitlines()[-1]
        assert is_record(last)
        assert content.startswith(kept)
        assert kept == (content[:place] if place is not None else content[: content.rfind(b"\n") + 1])


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """What is done to the lines of a file: changes, foreign lines, doubles, a torn end."""
    changes = draw(st.lists(st.tuples(st.integers(0, 60), st.sampled_from("adc"), GOOD | BAD), max_size=4))
    torn = draw(st.integers(0, 40))

    def damage(content: bytes) -> bytes:
        lines = content.splitlines()
        for place, what, line in changes:
            at = place % len(lines)
            new = {"a": [lines[at], line], "d": [lines[at], lines[at]], "c": [line]}[what]
            lines[at : at + 1] = new
        whole = b"\n".join(lines) + b"\n"
        return whole[: len(whole) - torn] if torn else whole

    return damage


@examples(2)
@given(damage=damaged())
def test_a_report_of_a_damaged_run_ends_well_and_changes_nothing(finished: Path, damage: Any) -> None:
    TRIED["reports of damaged runs"] += 1
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(finished, Path(folder, "run"), ignore=shutil.ignore_patterns("arms", "checkpoints"))
        path = Path(copied, "metrics.jsonl")
        path.write_bytes(damage(path.read_bytes()))
        before = path.read_bytes()
        ended = run("report", str(copied), f"output={folder}/report.html")
        assert ended.code == 0 or ended.is_one_line, ended
        assert not ended.error or ended.code == 2, ended
        assert path.read_bytes() == before


@examples(1)
@given(damage=damaged())
def test_resuming_a_run_with_damaged_metrics_ends_well_and_keeps_the_lines(finished: Path, damage: Any) -> None:
    TRIED["damaged runs resumed"] += 1
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(finished, Path(folder, "run")))
        path = copied / "metrics.jsonl"
        path.write_bytes(damage(path.read_bytes()))
        before = path.read_bytes()
        ended = run("train", f"resume={copied}", "train.steps=6")
        assert ended.code == 0 or ended.is_one_line, ended
        after = path.read_bytes()
        state = json.loads((sorted((finished / "checkpoints").glob("step-*"))[-1] / "state.json").read_text())
        assert after == before or after.startswith(before[: state["metrics_position"]])
