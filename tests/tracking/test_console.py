import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from natattn.tracking import Record
from natattn.tracking.console import Console

FACTS: dict[str, Any] = {
    "reference": "standard",
    "candidate": "natural",
    "arms": {"natural": {}, "standard": {}},
    "label": "natural · aif · nano",
    "leaky": [],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def evaluation(step: int, **losses: float) -> list[Record]:
    records = []
    for arm, loss in losses.items():
        records.append(Record(step, arm, "validation/loss", loss, step / 10))
        records.append(Record(step, arm, "time/tokens_per_second", 12_345.0, step / 10))
    return records


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def last_picture(terminal: Terminal) -> str:
    return plain(terminal.getvalue()).rsplit(FACTS["label"], 1)[1]


def test_one_line_for_each_evaluation_without_a_terminal() -> None:
    stream = io.StringIO()
    with Console(FACTS, total_steps=200, stream=stream) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
        console.log([Record(50, "standard", "train/loss", 7.0, 5.0)])
        console.log(evaluation(100, standard=5.0, natural=4.75))
        console.message("saved [bold]everything[/bold]")
        console.warning("it is hot")
    assert stream.getvalue().splitlines() == [
        "step 0/200 | standard 8.0000 | natural 8.0000 | difference +0.00000 | 12,345 and 12,345 tokens/s",
        "step 100/200 | standard 5.0000 | natural 4.7500 | difference -0.25000 | 12,345 and 12,345 tokens/s"
        " | 0:10 left",
        "saved [bold]everything[/bold]",
        "warning: it is hot",
    ]


def test_arms_that_are_logged_one_after_the_other_are_one_line() -> None:
    stream = io.StringIO()
    with Console(FACTS, total_steps=10, stream=stream) as console:
        console.log(evaluation(5, standard=5.0))
        assert stream.getvalue() == ""
        console.log(evaluation(5, natural=6.0))
    assert len(stream.getvalue().splitlines()) == 1


def test_a_diverged_arm_does_not_hold_back_the_line() -> None:
    stream = io.StringIO()
    with Console(FACTS, total_steps=10, stream=stream) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
        console.log([Record(3, "natural", "diverged", 3.0, 0.3)])
        console.log(evaluation(5, standard=5.0))
    line = stream.getvalue().splitlines()[-1]
    assert line.startswith("step 5/10 | standard 5.0000 | natural diverged at step 3 |")
    assert "difference" not in line


def test_an_evaluation_that_was_interrupted_is_still_shown() -> None:
    stream = io.StringIO()
    with Console(FACTS, total_steps=10, stream=stream) as console:
        console.log(evaluation(5, standard=5.0))
    assert "standard 5.0000 | natural not evaluated" in stream.getvalue()


def test_one_arm_has_no_difference() -> None:
    stream = io.StringIO()
    facts = FACTS | {"reference": None, "arms": {"natural": {}}, "leaky": ["natural"]}
    with Console(facts, total_steps=10, stream=stream) as console:
        console.log(evaluation(5, natural=5.0))
    assert stream.getvalue() == "step 5/10 | natural LEAKY 5.0000 | 12,345 tokens/s\n"


def test_a_tiny_difference_is_not_shown_as_none() -> None:
    stream = io.StringIO()
    with Console(FACTS, total_steps=10, stream=stream) as console:
        console.log(evaluation(5, standard=5.0, natural=5.0 - 3e-7))
    assert "difference -3.0e-07 |" in stream.getvalue()


def test_no_control_sequences_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    stream = io.StringIO()
    with Console(FACTS, total_steps=10, stream=stream) as console:
        console.log(evaluation(5, standard=5.0, natural=5.0))
    assert "\x1b" not in stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Console(FACTS, total_steps=10, stream=terminal) as console:
        console.log(evaluation(5, standard=5.0, natural=5.0))
    assert terminal.getvalue().startswith("step 5/10 | ")


def test_a_stream_without_unicode_does_not_end_the_training() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with Console(FACTS, total_steps=10, stream=stream) as console:
        console.message("natural · aif")
    assert raw.getvalue() == b"natural ? aif\n"


def test_the_live_display(terminal: Terminal) -> None:
    with Console(FACTS | {"leaky": ["natural"]}, total_steps=200, stream=terminal) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
        console.log([Record(100, arm, "train/loss", loss, 10.0) for arm, loss in (("standard", 6.5), ("natural", 6.0))])
        console.log(evaluation(100, standard=5.0, natural=5.25))
    picture = last_picture(terminal)
    assert "100/200  0:10 left" in picture
    rows = {line.split()[0]: line.split() for line in picture.splitlines() if line.strip()}
    assert rows["standard"] == ["standard", "6.5000", "5.0000", "12,345"]
    assert rows["natural"] == ["natural", "LEAKY", "6.0000", "5.2500", "12,345"]
    assert rows["difference"] == ["difference", "-0.50000", "+0.25000"]


TASKS = {
    "vision": ("image", "validation/accuracy", "accuracy"),
    "multimodal": ("pair", "validation/image_to_text_recall_1", "recall@1"),
}


def task_evaluation(task: str, step: int, **measured: tuple[float, float]) -> list[Record]:
    """{arm: loss and share}; each arm's records together, as the loop logs them."""
    unit, metric, _ = TASKS[task]
    names = ("validation/loss", metric, f"time/{unit}s_per_second")
    return [
        Record(step, arm, name, value, step / 10)
        for arm, (loss, share) in measured.items()
        for name, value in zip(names, (loss, share, 678.0), strict=True)
    ]


@pytest.mark.parametrize("task", TASKS)
def test_a_line_of_another_task_has_its_share_and_unit(task: str) -> None:
    unit, _, name = TASKS[task]
    stream = io.StringIO()
    with Console(FACTS | {"unit": unit}, total_steps=200, stream=stream) as console:
        console.log(task_evaluation(task, 100, standard=(1.5, 0.5), natural=(1.25, 0.625)))
        console.log([Record(150, "natural", "diverged", 150.0, 15.0)])
        console.log(task_evaluation(task, 200, standard=(1.0, 0.75)))
    assert stream.getvalue().splitlines() == [
        f"step 100/200 | standard 1.5000 | natural 1.2500 | difference -0.25000 | {name} 50.0 % and 62.5 %"
        f" | 678 and 678 {unit}s/s",
        f"step 200/200 | standard 1.0000 | natural diverged at step 150 | {name} 75.0 % | 678 and 678 {unit}s/s",
    ]


@pytest.mark.parametrize("columns", [24, 60, 90])
@pytest.mark.parametrize("task", TASKS)
def test_the_live_display_of_another_task(
    task: str, columns: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _, name = TASKS[task]
    monkeypatch.setenv("COLUMNS", str(columns))
    with Console(FACTS | {"unit": unit}, total_steps=200, stream=terminal) as console:
        console.log(task_evaluation(task, 0, standard=(2.3, 0.1), natural=(2.3, 0.1)))
        console.log(task_evaluation(task, 100, standard=(1.5, 0.5), natural=(1.25, 0.625)))
    picture = last_picture(terminal)
    assert max(map(len, plain(terminal.getvalue()).replace("\r", "\n").splitlines())) <= columns
    rows = {line.split()[0]: line.split() for line in picture.splitlines() if line.strip()}
    if columns >= 60:
        assert rows[f"nats/{unit}"] == [f"nats/{unit}", "train", "validation", name, f"{unit}s/s"]
        assert rows["standard"] == ["standard", "1.5000", "50.0", "%", "678"]
        assert rows["difference"] == ["difference", "-0.25000"]
    assert "token" not in picture


def test_a_diverged_arm_in_the_live_display(terminal: Terminal) -> None:
    with Console(FACTS, total_steps=200, stream=terminal) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
        console.log([Record(7, "natural", "diverged", 7.0, 1.0)])
    assert "diverged at 7" in last_picture(terminal)


def test_a_display_that_can_no_longer_be_drawn(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> int:
        raise BrokenPipeError

    with Console(FACTS, total_steps=200, stream=terminal) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
        monkeypatch.setattr(terminal, "write", broken)
        console.warning("it is hot")
        console.log(evaluation(100, standard=5.0, natural=5.25))


@pytest.mark.parametrize("columns", [10, 24, 40, 59])
def test_a_narrow_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with Console(FACTS, total_steps=200, stream=terminal) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
    lines = plain(terminal.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= columns


@contextlib.contextmanager
def as_standard_streams(terminal: Terminal) -> Iterator[None]:
    """Inside a test, as pytest sets the streams anew when a test begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        yield


@pytest.fixture
def library_log(terminal: Terminal) -> Iterator[logging.Logger]:
    """The logger of a library whose handler was made before the display."""
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)
    yield logger
    assert handler.stream is terminal
    logger.removeHandler(handler)


def test_nothing_that_is_said_is_lost_under_the_live_display(terminal: Terminal, library_log: logging.Logger) -> None:
    with as_standard_streams(terminal), Console(FACTS, total_steps=200) as console:
        console.log(evaluation(0, standard=8.0, natural=8.0))
        print("printed words")
        print("printed to standard error", file=sys.stderr)
        library_log.warning("logged words")
        console.warning("the console's warning")
        console.message("the console's message")
        console.log(evaluation(10, standard=8.0, natural=8.0))
    screen = Screen()
    screen.feed(terminal.getvalue())
    text = "\n".join(screen.lines)
    for words in ("printed words", "printed to standard error", "logged words", "warning: the console's warning"):
        assert text.count(words) == 1
    assert text.count(FACTS["label"]) == 1  # one display, below all that
    assert text.index("the console's message") < text.index(FACTS["label"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_cursor_and_the_streams_come_back(terminal: Terminal, error: type[BaseException]) -> None:
    def fail() -> None:
        with Console(FACTS, total_steps=200) as console:
            console.log(evaluation(0, standard=8.0, natural=8.0))
            assert sys.stdout is not terminal
            raise error

    with as_standard_streams(terminal):
        with pytest.raises(error):
            fail()
        assert sys.stdout is terminal
        assert sys.stderr is terminal
    text = terminal.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_messages_before_and_after_the_display(terminal: Terminal) -> None:
    console = Console(FACTS, total_steps=200, stream=terminal)
    console.message("before")
    with console:
        pass
    console.warning("after")
    assert "before\n" in plain(terminal.getvalue())
    assert plain(terminal.getvalue()).endswith("warning: after\n")


class Screen:
    """What a terminal shows: as much of its language as the display speaks (up, erase line, return, newline)."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = 0
        self.column = 0

    def feed(self, text: str) -> None:
        for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|.|\n|\r", text):
            if token == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token == "\r":
                self.column = 0
            elif token.startswith("\x1b"):
                self.control(token)
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + 1 :]
                self.column += 1

    def control(self, token: str) -> None:
        if token.endswith("A"):
            self.row -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            self.lines[self.row] = ""
        else:
            assert token.endswith("m") or token in ("\x1b[?25l", "\x1b[?25h"), token
