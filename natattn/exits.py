"""How commands end: the exit code and the one line that errors and interruptions become."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from natattn.errors import UserError
from natattn.together import LauncherStore, started_by_torchrun


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one line and exit code 2, Ctrl-C is 130."""
    try:
        return command()
    except UserError as error:
        if not started_by_torchrun() or LauncherStore().is_first_to_report_mistake():
            print(f"natattn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("natattn: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has gone (natattn report | head): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def leave(code: int) -> NoReturn:
    """End the process of a rank at once, with everything printed.

    A thread of the process group that lets go of its last tensor while Python is being taken down aborts the process,
    and torchrun would end the other ranks, of which the first may still be saving the models.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
