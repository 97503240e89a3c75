"""Signals that end a command. They are also noted, because a library may swallow the exception."""

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
    is_running: bool = False
    signal: int | None = None  # number of the last signal since the command started


_command = _Command()


def note(number: int) -> None:
    """Note a received signal; without effect outside of a command."""
    if _command.is_running:
        _command.signal = number


def requested() -> int | None:
    """Return the number of the signal that was received since the command started, None if there was none."""
    return _command.signal


def raise_requested() -> NoReturn:
    """Raise the exception of the noted signal."""
    raise TerminatedError if _command.signal == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def noting_signals() -> Iterator[bool]:
    """Note SIGINT while a command runs (it still raises KeyboardInterrupt). Yields False when nested."""
    if _command.is_running or threading.current_thread() is not threading.main_thread():
        yield False
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        note(number)
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    _command.is_running, _command.signal = True, None
    try:
        yield True
    finally:
        _command.is_running, _command.signal = False, None
        if previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, previous)
