"""SIGINT and SIGTERM end a run at the next step, not in the middle of one."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from natattn.training.signals import note


class BrokenOffError(BaseException):
    """A signal aborted work that can be repeated. Not an Exception, so that no library handles it as an error."""


class Interruption:
    """Context that records the first SIGINT or SIGTERM; a second SIGINT raises KeyboardInterrupt.

    Attributes:
        signal: number of the signal that ends the run, None so far. Of several ranks: the one that all agreed on.
        received: number of the signal that this process received.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.received: int | None = None
        self._agreeing = False
        self._breakable = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python allows signal handlers in the main thread only.
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
        note(number)
        if not self._agreeing:
            self.signal = number
        if self._breakable:
            self._breakable = False
            raise BrokenOffError

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """Let a signal abort the block, which must change nothing that is saved.

        Has no effect if several ranks have to agree on ending.

        Raises: BrokenOffError, also at once if a signal was received before.
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
        """Set a received signal aside until the ranks agree."""
        self._agreeing = True
        self.signal = None

    def agree(self, received: list[int | None]) -> None:
        """End the run if any rank received a signal."""
        self._agreeing = True
        self.signal = max((number for number in received if number is not None), default=None)
