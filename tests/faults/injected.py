"""Faults, put into a forked child before it runs its command."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Events of the file system that change something, by their names in Python's audit hooks.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "fcntl.flock"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Moments:
    """Counts the moments of each stage of a command, and calls back at one of them.

    Stages: `prepare`, `training`, `evaluation`, `checkpoint`, `export`, and `other`. A moment is a change to the file
    system below one of the `roots`, an fsync, or the beginning of a training step or of an evaluation of a split.
    """

    def __init__(self, roots: list[str], reached: Callable[[str, int], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._roots, self._reached = tuple(roots), reached
        self._stage = "other"
        self._counting = False
        self._name_stages()
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            self.count()
            fsync(descriptor)

        os.fsync = counted_fsync

    def count(self) -> None:
        """A moment of the present stage."""
        if self._counting:
            return
        self._counting = True
        self.counts[self._stage] += 1
        self._reached(self._stage, self.counts[self._stage])
        self._counting = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING and isinstance(path, str | Path) and self._is_below(path):
                self.count()
        elif event in CHANGES and (event == "fcntl.flock" or self._is_below(arguments[0]) or arguments[-1] != -1):
            self.count()

    def _is_below(self, path: Any) -> bool:
        return isinstance(path, str | Path) and os.path.abspath(path).startswith(self._roots)

    def _name_stages(self) -> None:
        from natattn.stacked import replicas
        from natattn.training import run, train
        from natattn.training.arm import Arm

        for module in (train, replicas):
            self._stage_of(module, "open_task", "prepare")
        self._stage_of(train, "_export", "export")
        self._stage_of(run, "save_checkpoint", "checkpoint")
        self._stage_of(run, "split_metrics", "evaluation", counts=True)
        self._stage_of(run, "attention_metrics", "evaluation", counts=True)
        self._stage_of(run.Run, "evaluate", "evaluation")
        self._stage_of(Arm, "train_step", "training", counts=True)

    def _stage_of(self, owner: Any, name: str, stage: str, *, counts: bool = False) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            before, self._stage = self._stage, stage
            if counts:
                self.count()
            try:
                return original(*arguments, **options)
            finally:
                self._stage = before

        setattr(owner, name, wrapped)


def _note_flushed_sizes(path: str) -> None:
    """Keep in a file how long the metrics were after the last evaluation."""
    from natattn.training.run import Run

    evaluate = Run.evaluate
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def noted(run: Run, *arguments: Any) -> bool:
        done = evaluate(run, *arguments)
        os.pwrite(descriptor, b"%020d" % (run.folder / "metrics.jsonl").stat().st_size, 0)
        return done

    Run.evaluate = noted  # type: ignore[method-assign]


def counted(roots: list[str], counts: str) -> None:
    """No fault: write how many moments each stage had to the file `counts`, line by line as they come."""
    descriptor = os.open(counts, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    Moments(roots, lambda stage, _: os.write(descriptor, f"{stage}\n".encode()) and None)


def killed(roots: list[str], stage: str | None, number: int, delay: float, sizes: str) -> None:
    """kill -9 at the number-th moment of a stage (None: of all stages together), or `delay` seconds after it."""
    _note_flushed_sizes(sizes)
    total = 0

    def reached(at: str, count: int) -> None:
        nonlocal total
        total += 1
        if (total if stage is None else count) != number or stage not in (None, at):
            return
        if delay == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=_kill_in, args=(delay,), daemon=True).start()

    Moments(roots, reached)


def _kill_in(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def signalled(roots: list[str], stage: str, number: int, signals: list[int]) -> None:
    """Signals to this process at the number-th moment of a stage."""

    def reached(at: str, count: int) -> None:
        if (at, count) == (stage, number):
            for each in signals:
                os.kill(os.getpid(), each)

    Moments(roots, reached)


def commanded(roots: list[str], stage: str, number: int, command: str) -> None:
    """A shell command at the number-th moment of a stage; in it $PPID is the process."""

    def reached(at: str, count: int) -> None:
        if (at, count) == (stage, number):
            subprocess.run(["sh", "-c", command], check=True)

    Moments(roots, reached)


def signalled_later(roots: list[str], stage: str, number: int, delay: float) -> None:
    """SIGTERM from outside, `delay` seconds after the number-th moment of a stage."""

    def send() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGTERM)

    def reached(at: str, count: int) -> None:
        if (at, count) == (stage, number):
            threading.Thread(target=send, daemon=True).start()

    Moments(roots, reached)


def clock_runs_backwards() -> None:
    """Every look at the clock of the wall finds it a minute earlier."""
    now = time.time()
    looks = itertools.count()
    time.time = lambda: now - 60.0 * next(looks)


def little_memory(more: int) -> None:
    """No more address space than is taken now and `more` bytes."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, taken + more))
