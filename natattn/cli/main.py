"""The `natattn` command. Help and version import nothing heavy."""

import os
import sys

from natattn.cli.help import HELP

COMMANDS = ("train", "report", "sample", "analyze", "reproduce", "doctor")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 success, 1 failure, 2 wrong input, 130 or 143 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command in ("--version", "-V", "version"):
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"natattn {version('natattn')}")
        except PackageNotFoundError:
            print("natattn (a checkout that is not installed)")
        return 0
    if command in ("-sc", "--shell-completion"):
        if _typing_the_command():
            print(" ".join(COMMANDS))
            return 0
        command, rest = "train", arguments
    if command not in COMMANDS:
        from natattn.cli.exit_codes import error_line
        from natattn.config.messages import suggestion

        print(error_line(f"{command}: no such command; {suggestion(command, COMMANDS)}"), file=sys.stderr)
        return 2
    if any("\udc80" <= character <= "\udcff" for argument in rest for character in argument):
        print("natattn: an argument is not valid UTF-8; rename the file or use a glob", file=sys.stderr)
        return 2
    from importlib import import_module

    from natattn.cli.exit_codes import hard_exit, run_guarded
    from natattn.cli.torchrun import started_by_torchrun

    # A doctor must work if the modules of other commands cannot be imported, so each command has a module of its own.
    code = run_guarded(getattr(import_module(f"natattn.cli.{command}"), command), rest)
    if started_by_torchrun():
        hard_exit(code)
    return code


def _typing_the_command() -> bool:
    """Return whether the shell completes the word after `natattn`."""
    line = os.environ.get("COMP_LINE", "")
    return bool(line) and len(line.split()) + line.endswith(" ") <= 2
