"""How commands end: the exit code and the one line that errors and interruptions become."""

import os
import signal
import sys
from collections.abc import Callable

from natattn.errors import UserError


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake is one line and exit code 2, Ctrl-C is 130."""
    try:
        return command()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other ranks of a machine make the same mistake
            print(f"natattn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("natattn: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has gone (natattn report | head): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
