"""Signals that ask a command to end, remembered: an exception that a library swallows would end nothing."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from natattn.errors import TerminatedError


@dataclass
class _Command:
    """What this process is asked to do, where it is a command.

    Attributes:
        running: whether there is one.
        stopped_by: number of the signal that came last since it began, None for none.
    """

    running: bool = False
    stopped_by: int | None = None


_command = _Command()


def remember(number: int) -> None:
    """Note a signal that was received; nothing outside of a command."""
    if _command.running:
        _command.stopped_by = number


def asked_to_stop() -> int | None:
    """The number of the signal that has come since the command began, whatever became of it; None for none."""
    return _command.stopped_by


def stop() -> NoReturn:
    """End the command as the signal would have, had nothing swallowed it."""
    raise TerminatedError if _command.stopped_by == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def remembered() -> Iterator[bool]:
    """Around a command: SIGINT raises KeyboardInterrupt as ever, and is remembered; false inside another command."""
    if _command.running or threading.current_thread() is not threading.main_thread():
        yield False
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        remember(number)
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    _command.running, _command.stopped_by = True, None
    try:
        yield True
    finally:
        _command.running, _command.stopped_by = False, None
        if usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, usual)
