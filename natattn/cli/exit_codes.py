"""How commands end: the exit code and the one line that errors and interruptions become."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from types import FrameType
from typing import NoReturn

from natattn.cli.torchrun import LauncherStore, started_by_torchrun
from natattn.errors import TerminatedError, UserError
from natattn.storage.atomic import is_of_the_disk, what_to_mend
from natattn.storage.redaction import one_line, redacted
from natattn.training.signals import asked_to_stop, remember, remembered


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one line and exit code 2, a full disk or memory 1, Ctrl-C 130, SIGTERM 143."""
    with remembered() as outermost:
        code = _guarded(command)
        if code or not outermost or asked_to_stop() is None:
            return code
        # What would come after it in a script has been called off.
        return _stopped(" when all was done")


def _guarded(command: Callable[[], int]) -> int:
    try:
        with _ended_by_sigterm():
            return command()
    except UserError as error:
        if asked_to_stop() is not None:  # a library's word for it
            return _stopped()
        return _say(str(error), error.exit_code)
    except TerminatedError:
        return _say("stopped by SIGTERM", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _say("interrupted", 128 + signal.SIGINT)
    except SystemExit as stop:  # how the jobs of a study, which may be in other processes, say it
        if stop.code != 128 + signal.SIGTERM:
            raise
        return _say("stopped by SIGTERM", stop.code)
    except BrokenExecutor:
        return _say("a worker process was killed (for its memory?); what is done is kept, start again what is not", 1)
    except BrokenPipeError:
        # The reader of our output has gone (natattn report | head): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        return _say(f"{error.filename or 'output'}: {error.strerror}; {what_to_mend(error)}", 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _say("out of memory", 1)


def _stopped(when: str = "") -> int:
    """Of a command that a signal has ended."""
    number = asked_to_stop() or signal.SIGINT
    return _say(f"{'stopped by SIGTERM' if number == signal.SIGTERM else 'interrupted'}{when}", 128 + number)


def _say(text: str, code: int) -> int:
    """One line to standard error, of all ranks by one; the code."""
    if code > 2 or not started_by_torchrun() or LauncherStore().is_first_to_report_mistake():
        with contextlib.suppress(OSError):  # standard error may be a file on the disk that is full
            print(line_of(text), file=sys.stderr, flush=True)
    return code


def _is_out_of_memory(error: BaseException) -> bool:
    from natattn.training.resource_errors import is_out_of_memory

    return is_out_of_memory(error)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that locks and temporary files go; later ones change nothing.

    Not the ranks of torchrun: one that waits for another would not hear it.
    """
    alone = threading.current_thread() is threading.main_thread() and not started_by_torchrun()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        remember(number)
        raise TerminatedError

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def line_of(error: UserError | str) -> str:
    """The one line that a user's mistake becomes, whatever the text that it quotes holds."""
    return one_line(redacted(f"natattn: {error}"))


def leave(code: int) -> NoReturn:
    """End the process of a rank at once, with everything printed.

    A thread of the process group that lets go of its last tensor while Python is being taken down aborts the process,
    and torchrun would end the other ranks, of which the first may still be saving the models.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
