"""Ctrl-C and SIGTERM end a run at the next step instead of in the middle of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interruption:
    """While open, the first SIGINT or SIGTERM is remembered; a second SIGINT interrupts at once.

    Attributes:
        signal: number of the signal received, None so far.
        received: the same of this process, where several have to agree first.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.received: int | None = None
        self._agreeing = False
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
        if not self._agreeing:
            self.signal = number

    def hold(self) -> None:
        """Wait with what was received until the other processes have been asked."""
        self._agreeing = True
        self.signal = None

    def agree(self, received: list[int | None]) -> None:
        """Take what any of the processes has received for one's own."""
        self._agreeing = True
        self.signal = max((number for number in received if number is not None), default=None)
