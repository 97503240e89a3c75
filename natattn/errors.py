"""The one exception that a user's mistake raises: its text is the one line that the command line prints."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line that says what is wrong, where (key, file, line) and what would be valid.
    The command line prints it without a traceback and exits with code 2.
    """
