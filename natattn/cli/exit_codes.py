"""Exit codes, and the one line that an error or an interruption becomes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from types import FrameType
from typing import Any, NoReturn

from natattn.cli.torchrun import LauncherStore, started_by_torchrun
from natattn.errors import TerminatedError, UserError
from natattn.storage.atomic import is_of_the_disk, what_to_mend
from natattn.storage.redaction import one_line, redacted
from natattn.training.signals import note, noting_signals, requested

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


def run_guarded(command: Callable[..., int], *arguments: Any, **options: Any) -> int:
    """Run a command and return its exit code; errors that the user can fix are printed in one line.

    Exit codes: 1 for a full disk, lack of memory or a failed job, 2 for wrong input, 130 after Ctrl-C, 143 after
    SIGTERM. Any other exception is raised.
    """
    with noting_signals() as is_outermost:
        try:
            with _raise_on_sigterm():
                code = command(*arguments, **options)
        except UserError as error:
            if (number := requested()) is not None:  # a library has turned the signal into an error
                return _report(_NAMES[signal.Signals(number)], 128 + number)
            return _report(str(error), error.exit_code)
        except TerminatedError:
            return _report(_NAMES[signal.SIGTERM], 128 + signal.SIGTERM)
        except KeyboardInterrupt:
            return _report(_NAMES[signal.SIGINT], 128 + signal.SIGINT)
        except SystemExit as error:  # raised by jobs of a study, possibly in other processes
            if error.code != 128 + signal.SIGTERM:
                raise
            return _report(_NAMES[signal.SIGTERM], error.code)
        except BrokenExecutor:
            return _report(
                "a worker process was killed, possibly for its memory; start again to continue with what is missing", 1
            )
        except BrokenPipeError:
            # The reader of our output has ended (natattn report | head), which is not an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if not is_of_the_disk(error):
                raise
            return _report(f"{error.filename or 'output'}: {error.strerror}; {what_to_mend(error)}", 1)
        except (MemoryError, RuntimeError) as error:
            from natattn.training.resource_errors import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return _report("out of memory", 1)
        if code == 0 and is_outermost and (number := requested()) is not None:
            # The command has finished, but a script must not continue with the next one.
            return _report(f"{_NAMES[signal.Signals(number)]} after the command had finished", 128 + number)
        return code


def _report(text: str, code: int) -> int:
    """Print one line to standard error, once for all ranks, and return the code."""
    if code > 2 or not started_by_torchrun() or LauncherStore().is_first_to_report_mistake():
        with contextlib.suppress(OSError):  # standard error may be a file on a full disk
            print(error_line(text), file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Raise TerminatedError on SIGTERM, so that locks and temporary files are removed; ignore later ones.

    Not for ranks of torchrun: a rank that waits for another would not notice.
    """
    is_alone = threading.current_thread() is threading.main_thread() and not started_by_torchrun()
    if not is_alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(number)
        raise TerminatedError

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def error_line(error: UserError | str) -> str:
    """Return an error as one printable line without secrets."""
    return one_line(redacted(f"natattn: {error}"))


def hard_exit(code: int) -> NoReturn:
    """Flush the output and end this rank's process at once.

    If a thread of the process group releases its last tensor while Python shuts down, the process aborts, and torchrun
    would end the other ranks, of which the first may still be saving the models.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
