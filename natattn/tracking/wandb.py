"""Weights & Biases as a mirror of the metrics file. Training continues whatever happens to it."""

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

# Batches waiting for wandb. At about one per second, a full queue means that wandb hangs.
_QUEUE_LENGTH = 1000


class WandbMirror:
    """A Tracker that sends records to wandb in a separate process.

    Metrics are named `<arm>/<name>`, over the column `step`. Files are written to `<folder>/wandb`. A resumed run
    passes the same `run_id`. No method raises or blocks, except that `__exit__` waits at most
    `settings.timeout_seconds`. The first failure calls `warn` with one line (default: standard error) and disables the
    mirror.
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
        finally:  # also if the wait is interrupted
            self._stop()

    def log(self, records: Sequence[Record]) -> None:
        """Send the records, as one wandb row per step."""
        if self._child is not None and records:
            self._send({"rows": _rows(records)})

    def summarise(self, summary: dict[str, Any]) -> None:
        """Set the summary that wandb's table of runs shows."""
        self._send({"summary": summary})

    def flush(self) -> None:
        """Do nothing: only the metrics file has to be durable."""

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
        self._warn(f"wandb {one_line(redacted(reason))}; training continues; its metrics are in metrics.jsonl")

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()


class _Child:
    """The process and two threads that communicate with it, so that training never waits for a pipe."""

    def __init__(self, environment: dict[str, str], start_within: float) -> None:
        self._process = subprocess.Popen(
            # -P keeps the script's folder, which contains a wandb.py, off the import path.
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C must reach only the training process
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
        """Queue one message; return what is wrong if the queue is full."""
        try:
            self._messages.put_nowait(line)
        except queue.Full:
            return "hangs"
        return None

    def failure(self) -> str | None:
        """Return what has gone wrong so far."""
        return self._failure

    def wait(self, seconds: float) -> str | None:
        """Wait until the process has finished the run; return what went wrong."""
        if not self._ended.wait(seconds):
            return f"did not finish within {seconds:g} s"
        return self._failure

    def stop(self) -> None:
        """Kill and reap the process."""
        self._late.cancel()
        self._process.kill()
        with contextlib.suppress(queue.Full):  # then the writer is at the broken pipe and ends by itself
            self._messages.put_nowait(None)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel, for example on a dead network disk
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
        with contextlib.suppress(OSError), pipe:  # on an error the process has ended, and the reader reports it
            while (line := self._messages.get()) is not None:
                pipe.write(line.encode() + b"\n")
                pipe.flush()

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError), pipe:  # ValueError: an incomplete line of a killed process
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
    if mode == "offline":  # the key is not needed offline, and cannot be written anywhere if it is absent
        environment.pop("WANDB_API_KEY", None)
    return environment | {"WANDB_ERROR_REPORTING": "false"}


def _warn_on_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
