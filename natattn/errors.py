"""The exceptions that end in one line on the command line, without a traceback."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line that says what is wrong, where (key, file, line) and what would be valid.
    The command line prints it without a traceback and exits with code 2.
    """

    exit_code = 2


class ResourceError(UserError):
    """Nothing that was asked for is wrong, but the machine lacks room on a disk, the right to write, or memory: code 1.

    Args:
        message: what is missing, and where.
        mend: what the user can do about it.
        resume_with: settings under which the same run would need less, for going on with it.
        anew: what would need less but computes something else (if only its rounding), for a new run.
    """

    exit_code = 1

    def __init__(self, message: str, *, mend: str = "", resume_with: str = "", anew: str = "") -> None:
        super().__init__(f"{message}; {mend}" if mend else message)
        self.mend = mend
        self.resume_with = resume_with
        self.anew = anew


class TerminatedError(KeyboardInterrupt):
    """SIGTERM while nothing is there that would have to be saved first: everything ends as after Ctrl-C."""
