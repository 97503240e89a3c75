"""Weights & Biases as a mirror of the metrics file: it may fail in any way, and training goes on."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from natattn.storage.redaction import one_line, redacted
from natattn.tracking import Record
from natattn.tracking.settings import WandbSettings

# Batches that wandb has not taken yet. At about one a second, a full queue means that it hangs.
_QUEUE_LENGTH = 1000


class WandbMirror:
    """Sends records to wandb, which runs in a process of its own; a context manager and a Tracker.

    Metrics are named `<arm>/<name>`, over the column `step`. Files are in `<folder>/wandb`. A resumed run passes the
    same `run_id`. No method raises or waits, but `__exit__`, which waits at most `settings.timeout_seconds`. At the
    first failure `warn` is called with one line (default: standard error) and the mirror does nothing from then on.
    """

    def __init__(
        self,
        settings: WandbSettings,
        *,
        folder: Path,
        config: dict[str, Any],
        group: str | None,
        name: str,
        run_id: str,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._warn = warn or _warn_on_stderr
        self._timeout = settings.timeout_seconds
        self._start = {
            "mode": settings.mode,
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group or group,
            "name": settings.name or name,
            "tags": list(settings.tags),
            "id": run_id,
            "resume": "allow" if settings.mode == "online" else None,
            "dir": str(Path(folder).resolve()),
            "config": config,
            "init_timeout": settings.timeout_seconds,
        }
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        try:
            self._child = _Child(_environment(self._settings.mode), start_within=self._timeout)
        except Exception as error:
            self._give_up(f"did not start: {error}")
        self._send({"start": self._start})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._send({"finish": 0 if error is None else 1})
            if self._child is not None and (failure := self._child.wait(self._timeout)):
                self._give_up(failure)
        finally:  # whatever interrupts the wait
            self._stop()

    def log(self, records: Sequence[Record]) -> None:
        """Mirrors the records: one wandb row for each step among them."""
        if self._child is not None and records:
            self._send({"rows": _rows(records)})

    def summarise(self, summary: dict[str, Any]) -> None:
        """Fills the summary that wandb's table of runs shows."""
        self._send({"summary": summary})

    def flush(self) -> None:
        """Nothing to wait for: the metrics file is what must outlive the process."""

    def _send(self, message: dict[str, Any]) -> None:
        if self._child is None:
            return
        try:
            failure = self._child.failure() or self._child.send(json.dumps(message, default=_plain))
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        if failure:
            self._give_up(failure)

    def _give_up(self, reason: str) -> None:
        self._stop()
        self._warn(f"wandb {one_line(redacted(reason))}; training goes on, its numbers are in metrics.jsonl")

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()


class _Child:
    """The process and the two threads that talk with it, so that the training never waits for a pipe."""

    def __init__(self, environment: dict[str, str], start_within: float) -> None:
        self._process = subprocess.Popen(
            # -P: the script's own folder, which has a wandb.py too, stays off the import path.
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the training alone
        )
        self._messages: queue.Queue[str | None] = queue.Queue(_QUEUE_LENGTH)
        self._started = threading.Event()
        self._ended = threading.Event()
        self._failure: str | None = None
        self._late = threading.Timer(start_within, self._give_up_start, (start_within,))
        self._late.daemon = True
        for thread in (self._late, *(threading.Thread(target=run, daemon=True) for run in (self._write, self._read))):
            thread.start()

    def send(self, line: str) -> str | None:
        """Queues one message; returns what is wrong if it cannot be taken."""
        try:
            self._messages.put_nowait(line)
        except queue.Full:
            return "hangs"
        return None

    def failure(self) -> str | None:
        """What went wrong so far."""
        return self._failure

    def wait(self, seconds: float) -> str | None:
        """Waits until the process has finished the run; returns what went wrong."""
        if not self._ended.wait(seconds):
            return f"did not finish within {seconds:g} s"
        return self._failure

    def stop(self) -> None:
        """Ends the process whatever it does, and reaps it."""
        self._late.cancel()
        self._process.kill()
        with contextlib.suppress(queue.Full):  # then the writer is at the pipe, which has just broken
            self._messages.put_nowait(None)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel, as on a dead network disk
            self._process.wait(timeout=1.0)

    def _give_up_start(self, seconds: float) -> None:
        if not self._started.is_set():
            self._end(f"did not start within {seconds:g} s")

    def _end(self, failure: str | None) -> None:
        if not self._ended.is_set():
            self._failure = failure
            self._ended.set()

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError), pipe:  # an error: the process is gone, and the reader knows why
            while (line := self._messages.get()) is not None:
                pipe.write(line.encode() + b"\n")
                pipe.flush()

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError), pipe:  # ValueError: half a line, as the process was killed
            for line in pipe:
                answer = json.loads(line)
                if answer["state"] == "started":
                    self._started.set()
                elif answer["state"] == "failed":
                    self._end(f"failed: {answer['reason']}")
                else:
                    self._end(None)
        self._end("failed: its process ended")


def _rows(records: Sequence[Record]) -> list[dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        row = rows.setdefault(record.step, {"step": record.step})
        row[record.name if record.arm is None else f"{record.arm}/{record.name}"] = float(record.value)
        row["seconds"] = record.seconds
    return list(rows.values())


def _plain(value: Any) -> float | str:
    return float(value) if hasattr(value, "__float__") else str(value)


def _environment(mode: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    if mode == "offline":  # the key is of no use there, and what is not there cannot be written anywhere
        environment.pop("WANDB_API_KEY", None)
    return environment | {"WANDB_ERROR_REPORTING": "false"}


def _warn_on_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
