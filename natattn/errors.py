"""Exceptions that the command line prints in one line, without a traceback."""


class UserError(Exception):
    """Wrong input from the user.

    The message is one line of the form ``key=value: what is wrong. Use X.`` The command line prints it without a
    traceback and exits with code 2.
    """

    exit_code = 2


class ResourceError(UserError):
    """Lack of disk space, write permission or memory. The command line exits with code 1.

    Args:
        message: what is missing, and where.
        mend: what the user can do about it.
        resume_with: overrides with which the resumed run needs less.
        anew: overrides with which a new run needs less, but computes something else (if only in its rounding).
    """

    exit_code = 1

    def __init__(self, message: str, *, mend: str = "", resume_with: str = "", anew: str = "") -> None:
        super().__init__(f"{message}; {mend}" if mend else message)
        self.mend = mend
        self.resume_with = resume_with
        self.anew = anew


class TerminatedError(KeyboardInterrupt):
    """SIGTERM while there is nothing to save; handled like Ctrl-C."""
