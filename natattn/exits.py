"""How commands end: the exit code and the one line that errors and interruptions become."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from natattn.errors import UserError
from natattn.explain import first_line
from natattn.redaction import one_line, redacted
from natattn.together import LauncherStore, started_by_torchrun


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one line and exit code 2, too little memory one and 1, Ctrl-C is 130."""
    try:
        return command()
    except UserError as error:
        if not started_by_torchrun() or LauncherStore().is_first_to_report_mistake():
            print(line_of(error), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print(f"natattn: not enough memory: {first_line(error)}; lower size.* or train.batch_size", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("natattn: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has gone (natattn report | head): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def line_of(error: UserError) -> str:
    """The one line that a user's mistake becomes, whatever the text that it quotes holds."""
    return one_line(redacted(f"natattn: {error}"))


def _is_lack_of_memory(error: Exception) -> bool:
    """PyTorch has no type of its own for what the CPU lacks."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def leave(code: int) -> NoReturn:
    """End the process of a rank at once, with everything printed.

    A thread of the process group that lets go of its last tensor while Python is being taken down aborts the process,
    and torchrun would end the other ranks, of which the first may still be saving the models.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
