"""What a run shows while it trains: one live display on a terminal, one line for each evaluation elsewhere."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self, TextIO

import rich.console
from rich.console import ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from natattn.tracking import DIVERGED, Record

_REFRESH_SECONDS = 0.25
_TRAIN, _VALIDATION = "train/loss", "validation/loss"
# Of tasks but language: what an evaluation's line says beside the loss, and what it is called there.
_SHARES = {"validation/accuracy": "accuracy", "validation/image_to_text_recall_1": "recall@1"}
# Below this width the columns that matter least are left out.
_WIDE_COLUMNS = 60


class Console:
    """Shows a run; a context manager and a Tracker.

    `run_facts` is the content of run.json, `stream` defaults to standard output. While the display is live, whatever
    else is printed, warned or logged appears above it. A reader who goes away (`| head -1`) ends this, not the run.
    """

    def __init__(self, run_facts: dict[str, Any], *, total_steps: int, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        _never_fail_to_encode(stream)
        # The stream alone decides: FORCE_COLOR and its like ask for colours, not for a display that moves.
        self._console = _RichConsole(
            file=stream, highlight=False, soft_wrap=not stream.isatty(), force_terminal=stream.isatty()
        )
        self._view = _View(run_facts, total_steps)
        self._live: Live | None = None
        self._exits = contextlib.ExitStack()
        self._refreshed_at = 0.0
        self._announced_step = -1

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                self._view,
                console=self._console,
                auto_refresh=False,  # drawn from `log`: no thread that takes time from the training
                redirect_stdout=_is_terminal(sys.stdout),
                redirect_stderr=_is_terminal(sys.stderr),
            )
            before = [sys.stdout, sys.stderr]
            self._exits.enter_context(self._live)
            self._exits.enter_context(_logging_moved(dict(zip(before, [sys.stdout, sys.stderr], strict=True))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._announce(self._view.evaluated_step)
        self._exits.close()  # draws a last time and shows the cursor again
        self._live = None

    def log(self, records: Sequence[Record]) -> None:
        """Takes the records into the display."""
        for record in records:
            self._view.take(record)
        if self._live is None:
            if self._view.evaluation_is_complete():
                self._announce(self._view.evaluated_step)
        elif time.monotonic() - self._refreshed_at >= _REFRESH_SECONDS:
            self._live.refresh()
            self._refreshed_at = time.monotonic()

    def flush(self) -> None:
        """Nothing to wait for."""

    def message(self, text: str) -> None:
        """Prints a line, above the live display if there is one."""
        self._console.print(Text(text))

    def warning(self, text: str) -> None:
        """Prints a warning, above the live display if there is one."""
        self._console.print(Text.assemble(("warning: ", "bold yellow"), text))

    def _announce(self, step: int) -> None:
        if self._live is None and step > self._announced_step:
            self._announced_step = step
            self._console.print(Text(self._view.line(step)))


class _RichConsole(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Says no more. rich would end the program."""
        self.quiet = True
        _send_to_nowhere(self.file)


class _View:
    """The latest numbers of a run, as a renderable and as a line."""

    def __init__(self, run_facts: dict[str, Any], total_steps: int) -> None:
        self._total_steps = total_steps
        self._title = str(run_facts.get("label") or "")
        self._reference = run_facts.get("reference")
        self._candidate = run_facts.get("candidate")
        arms = run_facts.get("arms", {})
        self._arms = sorted(arms, key=lambda arm: arm != self._reference)  # the reference first
        self._leaky = set(run_facts.get("leaky", ()))
        self._unit = str(run_facts.get("unit", "token"))
        self._speed = f"time/{self._unit}s_per_second"
        self._latest: dict[tuple[str | None, str], Record] = {}
        self._first: Record | None = None
        self._last: Record | None = None
        self.evaluated_step = -1

    def take(self, record: Record) -> None:
        self._latest[record.arm, record.name] = record
        self._first = self._first or record
        if self._last is None or record.step >= self._last.step:
            self._last = record
        if record.name == _VALIDATION:
            self.evaluated_step = max(self.evaluated_step, record.step)

    def evaluation_is_complete(self) -> bool:
        """Whether every arm that goes on has been evaluated at the latest step that any arm was."""
        going_on = [arm for arm in self._arms if (arm, DIVERGED) not in self._latest]
        return self.evaluated_step >= 0 and all(
            self._value(arm, _VALIDATION, self.evaluated_step) is not None for arm in going_on
        )

    def line(self, step: int) -> str:
        """The evaluation at `step` in one line: losses in nats, and what the task measures beside them."""
        parts = [f"step {step}/{self._total_steps}"]
        parts += [f"{self._label(arm)} {self._validation_or_fate(arm, step)}" for arm in self._arms]
        if (difference := self._difference(_VALIDATION)) is not None:
            parts.append(f"difference {signed(difference)}")
        for metric, name in _SHARES.items():
            found = [value for arm in self._arms if (value := self._value(arm, metric, step)) is not None]
            if found:
                parts.append(f"{name} {' and '.join(f'{100 * value:.1f} %' for value in found)}")
        speeds = [self._latest[arm, self._speed] for arm in self._arms if (arm, self._speed) in self._latest]
        if speeds:
            parts.append(f"{' and '.join(f'{speed.value:,.0f}' for speed in speeds)} {self._unit}s/s")
        if remaining := self._remaining():
            parts.append(f"{remaining} left")
        return " | ".join(parts)

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE_COLUMNS
        step = self._last.step if self._last else 0
        progress = f"{step}/{self._total_steps}"
        if remaining := self._remaining():
            progress += f"  {remaining} left"
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=max(1, self._total_steps), completed=step), progress)
        yield Group(Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"), bar, self._table(wide))

    def _table(self, wide: bool) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(f"nats/{self._unit}" if wide else "", no_wrap=True, overflow="ellipsis")
        shares = [(metric, name) for metric, name in _SHARES.items() if (self._arms[0], metric) in self._latest]
        further = [*(name for _, name in shares), f"{self._unit}s/s"]
        for heading in ("train", "validation", *further) if wide else ("train", "valid."):
            table.add_column(heading, justify="right", no_wrap=True)
        for arm in self._arms:
            cells = [_loss(self._latest.get((arm, name))) for name in (_TRAIN, _VALIDATION)]
            if diverged := self._latest.get((arm, DIVERGED)):
                cells[0] = f"[bold red]diverged at {diverged.step}[/]"
            if wide:
                for metric, _ in shares:
                    found = self._latest.get((arm, metric))
                    cells.append(f"{100 * found.value:.1f} %" if found else "")
                speed = self._latest.get((arm, self._speed))
                cells.append(f"{speed.value:,.0f}" if speed else "")
            table.add_row(Text(self._label(arm), style="red" if arm in self._leaky else ""), *cells)
        if self._reference in self._arms and self._candidate in self._arms:
            differences = [self._difference(name) for name in (_TRAIN, _VALIDATION)]
            table.add_row("difference", *("" if each is None else signed(each) for each in differences), style="cyan")
        return table

    def _label(self, arm: str) -> str:
        return f"{arm} LEAKY" if arm in self._leaky else arm

    def _validation_or_fate(self, arm: str, step: int) -> str:
        if diverged := self._latest.get((arm, DIVERGED)):
            return f"diverged at step {diverged.step}"
        value = self._value(arm, _VALIDATION, step)
        return "not evaluated" if value is None else f"{value:.4f}"

    def _value(self, arm: str | None, name: str, step: int) -> float | None:
        record = self._latest.get((arm, name))
        return record.value if record is not None and record.step == step else None

    def _difference(self, name: str) -> float | None:
        """Candidate minus reference, where both latest values are of one step."""
        candidate = self._latest.get((self._candidate, name))
        if candidate is None or (reference := self._value(self._reference, name, candidate.step)) is None:
            return None
        return candidate.value - reference

    def _remaining(self) -> str:
        """The time left at the mean speed since this process started, evaluations included."""
        first, last = self._first, self._last
        if first is None or last is None or last.step <= first.step or last.step >= self._total_steps:
            return ""
        seconds_per_step = (last.seconds - first.seconds) / (last.step - first.step)
        return _duration(seconds_per_step * (self._total_steps - last.step))


def signed(difference: float) -> str:
    """A difference of losses with its sign; one too small for five decimals is not written as zero."""
    return f"{difference:+.5f}" if difference == 0.0 or abs(difference) >= 1e-4 else f"{difference:+.1e}"


def _loss(record: Record | None) -> str:
    return "" if record is None else f"{record.value:.4f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _is_terminal(stream: TextIO | None) -> bool:
    # What the user sent to a file stays there.
    return stream is not None and stream.isatty()


def _send_to_nowhere(stream: IO[str]) -> None:
    """Points the stream's descriptor at os.devnull, with standard output and error where they are the same broken pipe.

    What the stream holds in its buffer, and what others print to it later, then fails neither now nor at exit.
    """
    try:
        broken = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return  # no file of the system's
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in {stream.fileno(), 1, 2}:
            with contextlib.suppress(OSError):  # closed
                if os.path.samestat(os.fstat(descriptor), broken):
                    os.dup2(nowhere, descriptor)
    finally:
        os.close(nowhere)


def _never_fail_to_encode(stream: TextIO) -> None:
    """A terminal without Unicode shows `?` for what it does not know; it does not end the training."""
    if "utf" not in (getattr(stream, "encoding", None) or "utf").lower() and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


@contextlib.contextmanager
def _logging_moved(streams: dict[TextIO, TextIO]) -> Iterator[None]:
    """Moves log handlers from one stream to another.

    A handler keeps the standard error that it was made with, and so would write into the live display, which then
    paints over it.
    """
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    moved = {
        handler: handler.stream
        for handler in handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in streams
    }
    try:
        for handler, stream in moved.items():
            handler.setStream(streams[stream])
        yield
    finally:
        for handler, stream in moved.items():
            handler.setStream(stream)
