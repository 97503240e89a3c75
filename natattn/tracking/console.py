"""Progress of a training run: a live display on a terminal, else one line for each evaluation."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self, TextIO

import rich.console
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from natattn.tracking import DIVERGED, Record

_REFRESH_SECONDS = 0.25
_TRAIN, _VALIDATION = "train/loss", "validation/loss"
# {metric that a task other than language reports next to the loss: its name in the display}.
_SHARES = {"validation/accuracy": "accuracy", "validation/image_to_text_recall_1": "recall@1"}
_WIDE_COLUMNS = 60  # narrower terminals get fewer columns


class Console:
    """Display of a run: a context manager and a Tracker.

    While the display is live, everything printed, warned or logged appears above it. If the reader of the output goes
    away (`| head -1`), the output ends but the run continues.

    Args:
        run_facts: content of run.json.
        total_steps: steps of the whole run.
        stream: standard output by default.
    """

    def __init__(self, run_facts: dict[str, Any], *, total_steps: int, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        if "utf" not in (getattr(stream, "encoding", None) or "utf").lower() and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # shows "?" without Unicode rather than ending the training
        # The stream alone decides: FORCE_COLOR and the like ask for colours, not for a live display.
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
                auto_refresh=False,  # drawn from `log`, since a thread would take time from training
                redirect_stdout=_is_terminal(sys.stdout),  # output redirected to a file stays there
                redirect_stderr=_is_terminal(sys.stderr),
            )
            before = [sys.stdout, sys.stderr]
            self._exits.enter_context(self._live)
            self._exits.enter_context(_logging_moved(dict(zip(before, [sys.stdout, sys.stderr], strict=True))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._announce()
        self._exits.close()  # draws a last time and shows the cursor again
        self._live = None

    def log(self, records: Sequence[Record]) -> None:
        """Show the records."""
        for record in records:
            self._view.add(record)
        if self._live is None:
            if self._view.evaluation_is_complete():
                self._announce()
        elif time.monotonic() - self._refreshed_at >= _REFRESH_SECONDS:
            self._live.refresh()
            self._refreshed_at = time.monotonic()

    def flush(self) -> None:
        """Do nothing, since there is no output to wait for."""

    def message(self, text: str) -> None:
        """Print a line, above the live display if there is one."""
        self._console.print(Text(text))

    def warning(self, text: str) -> None:
        """Print a warning, above the live display if there is one."""
        self._console.print(Text.assemble(("warning: ", "bold yellow"), text))

    def _announce(self) -> None:
        step = self._view.evaluated_step
        if self._live is None and step > self._announced_step:
            self._announced_step = step
            self._console.print(Text(self._view.line(step)))


class _RichConsole(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Stop printing on a broken pipe, for which rich would end the program."""
        self.quiet = True
        _send_to_null(self.file)


class _View:
    """The latest numbers of a run, as a renderable and as a line."""

    def __init__(self, run_facts: dict[str, Any], total_steps: int) -> None:
        self._total_steps = total_steps
        self._title = str(run_facts.get("label") or "")
        self._reference = run_facts.get("reference")
        self._candidate = run_facts.get("candidate")
        # The reference first.
        self._arms: list[str] = sorted(run_facts.get("arms", {}), key=lambda arm: arm != self._reference)
        self._leaky = set(run_facts.get("leaky", ()))
        self._unit = str(run_facts.get("unit", "token"))
        self._speed = f"time/{self._unit}s_per_second"
        self._latest: dict[tuple[str | None, str], Record] = {}
        self._first: Record | None = None
        self._last: Record | None = None
        self.evaluated_step = -1

    def add(self, record: Record) -> None:
        self._latest[record.arm, record.name] = record
        self._first = self._first or record
        if self._last is None or record.step >= self._last.step:
            self._last = record
        if record.name == _VALIDATION:
            self.evaluated_step = max(self.evaluated_step, record.step)

    def evaluation_is_complete(self) -> bool:
        """True if every arm that has not diverged has been evaluated at the latest step."""
        training = [arm for arm in self._arms if (arm, DIVERGED) not in self._latest]
        return self.evaluated_step >= 0 and all(
            self._value(arm, _VALIDATION, self.evaluated_step) is not None for arm in training
        )

    def line(self, step: int) -> str:
        """The evaluation at ``step``: losses in nats, the metric of the task, speed and time left."""
        parts = [f"step {step}/{self._total_steps}"]
        for arm in self._arms:
            value = self._value(arm, _VALIDATION, step)
            if diverged := self._latest.get((arm, DIVERGED)):
                text = f"diverged at step {diverged.step}"
            else:
                text = "not evaluated" if value is None else f"{value:.4f}"
            parts.append(f"{self._label(arm)} {text}")
        if difference := self._difference(_VALIDATION):
            parts.append(f"difference {difference}")
        for metric, name in _SHARES.items():
            shares = [value for arm in self._arms if (value := self._value(arm, metric, step)) is not None]
            if shares:
                parts.append(f"{name} {' and '.join(f'{100 * share:.1f} %' for share in shares)}")
        speeds = [self._latest[arm, self._speed] for arm in self._arms if (arm, self._speed) in self._latest]
        if speeds:
            parts.append(f"{' and '.join(f'{speed.value:,.0f}' for speed in speeds)} {self._unit}s/s")
        if remaining := self._remaining():
            parts.append(f"{remaining} left")
        return " | ".join(parts)

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        step = self._last.step if self._last else 0
        progress = f"{step}/{self._total_steps}"
        if remaining := self._remaining():
            progress += f"  {remaining} left"
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=max(1, self._total_steps), completed=step), progress)
        yield Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")
        yield bar
        yield self._table(options.max_width >= _WIDE_COLUMNS)

    def _table(self, wide: bool) -> Table:
        columns = {"train": _TRAIN, "validation" if wide else "valid.": _VALIDATION}
        if wide:
            columns |= {name: metric for metric, name in _SHARES.items() if (self._arms[0], metric) in self._latest}
            columns[f"{self._unit}s/s"] = self._speed
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(f"nats/{self._unit}" if wide else "", no_wrap=True, overflow="ellipsis")
        for heading in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        for arm in self._arms:
            cells = [self._cell(arm, metric) for metric in columns.values()]
            if diverged := self._latest.get((arm, DIVERGED)):
                cells[0] = f"[bold red]diverged at {diverged.step}[/]"
            table.add_row(Text(self._label(arm), style="red" if arm in self._leaky else ""), *cells)
        if self._reference in self._arms and self._candidate in self._arms:
            table.add_row("difference", *(self._difference(name) for name in (_TRAIN, _VALIDATION)), style="cyan")
        return table

    def _cell(self, arm: str, metric: str) -> str:
        record = self._latest.get((arm, metric))
        if record is None:
            return ""
        if metric in _SHARES:
            return f"{100 * record.value:.1f} %"
        return f"{record.value:,.0f}" if metric == self._speed else f"{record.value:.4f}"

    def _label(self, arm: str) -> str:
        return f"{arm} LEAKY" if arm in self._leaky else arm

    def _value(self, arm: str | None, name: str, step: int) -> float | None:
        record = self._latest.get((arm, name))
        return record.value if record is not None and record.step == step else None

    def _difference(self, name: str) -> str:
        """Candidate − reference if both latest values are of one step."""
        candidate = self._latest.get((self._candidate, name))
        if candidate is None or (reference := self._value(self._reference, name, candidate.step)) is None:
            return ""
        return signed(candidate.value - reference)

    def _remaining(self) -> str:
        """The time left at the mean speed since this process started, evaluations included."""
        first, last = self._first, self._last
        if first is None or last is None or last.step <= first.step or last.step >= self._total_steps:
            return ""
        seconds_per_step = (last.seconds - first.seconds) / (last.step - first.step)
        minutes, seconds = divmod(round(seconds_per_step * (self._total_steps - last.step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def signed(difference: float) -> str:
    """Return a difference of losses with its sign; one too small for five decimals is not written as zero."""
    return f"{difference:+.5f}" if difference == 0.0 or abs(difference) >= 1e-4 else f"{difference:+.1e}"


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _send_to_null(stream: IO[str]) -> None:
    """Point a stream's descriptor at os.devnull, and standard output and error if they are the same broken pipe.

    Writes of what is buffered, and later prints of other code, then fail neither now nor at exit.
    """
    try:
        broken = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return  # not a file of the system
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in {stream.fileno(), 1, 2}:
            with contextlib.suppress(OSError):  # closed
                if os.path.samestat(os.fstat(descriptor), broken):
                    os.dup2(null, descriptor)
    finally:
        os.close(null)


@contextlib.contextmanager
def _logging_moved(streams: dict[TextIO, TextIO]) -> Iterator[None]:
    """Move log handlers from one stream to another.

    A handler keeps the standard error that it was made with. It would write into the live display, which then paints
    over its lines.
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
