import contextlib
import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from natattn.errors import UserError
from natattn.tracking import Record
from natattn.tracking.metrics_file import MetricsFile, read_metrics

RECORDS = [
    Record(0, "standard", "validation/loss", 8.25, 0.5),
    Record(0, "natural", "validation/loss", 8.125, 0.75),
    Record(3, None, "time/peak_memory_bytes", 2.0**31, 1.0),
    Record(3, "natural", "train/loss", math.nan, 1.25),
    Record(3, "natural", "attention/layer_0/entropy", math.inf, 1.5),
    Record(4, "natural", "attention/layer_0/entropy", -math.inf, 1.5),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, records: list[Record], **options: int) -> int:
    with MetricsFile(path, **options) as file:
        file.log(records)
        return file.position()


def line(**changes: object) -> str:
    return json.dumps({"step": 1, "arm": "natural", "name": "train/loss", "value": 1.0, "seconds": 0.1} | changes)


def test_what_is_written_is_read_back(path: Path) -> None:
    assert write(path, RECORDS) == path.stat().st_size
    metrics = read_metrics(path)
    columns = (metrics.step, metrics.arm, metrics.name, metrics.value, metrics.seconds)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    assert repr([Record(*row) for row in rows]) == repr(RECORDS)  # repr: nan equals nan
    assert metrics.arms() == ["standard", "natural"]
    assert metrics.names() == sorted({record.name for record in RECORDS})


def test_every_line_is_strict_json(path: Path) -> None:
    write(path, RECORDS)

    def refuse(token: str) -> None:
        raise AssertionError(token)

    lines = [json.loads(text, parse_constant=refuse) for text in path.read_text().splitlines()]
    assert [each["value"] for each in lines[3:]] == ["nan", "inf", "-inf"]


def test_values_keep_every_bit(path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.arange(-100, 100)
    write(path, [Record(step, "a", "x", np.float64(value), 0.0) for step, value in enumerate(values)])
    assert np.array_equal(read_metrics(path).value, values)


def test_select_finds_one_series_and_those_without_an_arm(path: Path) -> None:
    write(path, RECORDS)
    metrics = read_metrics(path)
    steps, values, seconds = metrics.select(arm="natural", name="validation/loss")
    assert (steps.tolist(), values.tolist(), seconds.tolist()) == ([0], [8.125], [0.75])
    assert metrics.select(arm=None, name="time/peak_memory_bytes")[1].tolist() == [2.0**31]
    assert metrics.select(arm=None, name="validation/loss")[0].size == 0


def test_resuming_cuts_what_came_after_the_checkpoint(path: Path) -> None:
    position = write(path, RECORDS[:2])
    write(path, RECORDS[2:])
    write(path, RECORDS[2:3], truncate_at=position)
    assert read_metrics(path).step.tolist() == [0, 0, 3]


def test_resuming_at_the_start_empties_the_file(path: Path) -> None:
    write(path, RECORDS)
    write(path, RECORDS[:1], truncate_at=0)
    assert read_metrics(path).step.size == 1


@pytest.mark.parametrize(("position", "reason"), [(10**6, "fewer than"), (7, "inside a line")])
def test_a_position_of_another_file_is_refused(path: Path, position: int, reason: str) -> None:
    write(path, RECORDS)
    before = path.read_bytes()
    with pytest.raises(UserError, match=reason), MetricsFile(path, truncate_at=position):
        pass
    assert path.read_bytes() == before


def test_appending_after_an_unfinished_line_starts_a_line_of_its_own(path: Path) -> None:
    write(path, RECORDS[:2])
    with open(path, "ab") as file:
        file.write(b'{"step": 7, "arm": "nat' + b"x" * 200_000)
    write(path, RECORDS[2:3])
    assert read_metrics(path).step.tolist() == [0, 0, 3]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_last_line_that_was_cut_is_left_out(path: Path, cut: int) -> None:
    write(path, RECORDS)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    # Without its newline alone the line is still whole.
    assert read_metrics(path).step.size == len(RECORDS) - (cut > 1)


def test_an_empty_file_has_empty_columns(path: Path) -> None:
    path.touch()
    metrics = read_metrics(path)
    assert metrics.step.size == 0
    assert metrics.select(arm="a", name="x")[1].size == 0


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "garbage",
        '{"step": 1}',
        "[1, 2]",
        line() + line(),
        line(step=1.5),
        line(step=True),
        line(step=-1),
        line(step=2**70),
        line(value=10**400),
        line(arm=3),
        line(name=None),
        line(value="high"),
        line(value="1.5"),
        line(value=None),
        line(seconds="0"),
        '{"step": 1, "arm": "a", "name": "x", "value": NaN, "seconds": 0}',
        line() + ", " + line(),
        "\x00\x00\x00",
    ],
)
def test_a_broken_line_is_named(path: Path, broken: str) -> None:
    path.write_text("\n".join([line(), line(), broken, line()]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:3: ") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(path: Path) -> None:
    path.write_bytes(line().encode() + b"\n\xff\xfe\n" + line().encode() + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)


def test_two_lines_that_are_json_only_together_are_refused(path: Path) -> None:
    whole = line()
    middle = whole.index(", ")
    path.write_text(f"{whole[:middle]}\n{whole[middle + 2 :]}\n{whole}, {whole}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: "):
        read_metrics(path)


def test_a_long_file_is_read_in_several_chunks(path: Path) -> None:
    count = 120_000
    write(path, [Record(step, ("a", "b")[step % 2], "train/loss", step / 2, 0.0) for step in range(count)])
    assert path.stat().st_size > 2 * (1 << 22)
    metrics = read_metrics(path)
    assert metrics.step.tolist() == list(range(count))
    assert metrics.select(arm="b", name="train/loss")[1].sum() == sum(range(1, count, 2)) / 2
    with open(path, "a") as file:
        file.write("broken\n" + line() + "\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl:{count + 1}: "):
        read_metrics(path)


def test_a_missing_file_is_one_line(path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl: No such file"):
        read_metrics(path)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 1 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:  # before pytest writes its report: that may be to a file as well
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line(path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=r"metrics\.jsonl: File too large; free space"):
        write(path, RECORDS * 100)


def test_a_full_disk_does_not_hide_the_first_error(path: Path) -> None:
    def fail() -> None:
        with MetricsFile(path) as file:
            file.log(RECORDS * 3)  # more than fits, less than the buffer
            raise ValueError("the first")

    with full_disk(), pytest.raises(ValueError, match="the first"):
        fail()
