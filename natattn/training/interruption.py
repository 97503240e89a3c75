"""Ctrl-C and SIGTERM end a run at the next step instead of in the middle of one."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from natattn.training.signals import remember


class BrokenOffError(BaseException):
    """A signal has ended work that can be thrown away. No library may take it for an error of its own."""


class Interruption:
    """While open, the first SIGINT or SIGTERM is remembered; a second SIGINT interrupts at once, a SIGTERM never does.

    Attributes:
        signal: number of the signal received, None so far.
        received: the same of this process, where several have to agree first.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.received: int | None = None
        self._agreeing = False
        self._breakable = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python allows signal handlers in the main thread only; elsewhere the run just cannot be interrupted softly.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        remember(number)
        if not self._agreeing:
            self.signal = number
        if self._breakable:
            self._breakable = False
            raise BrokenOffError

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """Around what may take long and changes nothing that is saved: a signal ends it at once.

        Where several processes have to agree first, it goes on to its end.

        Raises: BrokenOffError, also where a signal has come before.
        """
        if self._agreeing:
            yield
            return
        if self.signal is not None:
            raise BrokenOffError
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    def hold(self) -> None:
        """Wait with what was received until the other processes have been asked."""
        self._agreeing = True
        self.signal = None

    def agree(self, received: list[int | None]) -> None:
        """Take what any of the processes has received for one's own."""
        self._agreeing = True
        self.signal = max((number for number in received if number is not None), default=None)
