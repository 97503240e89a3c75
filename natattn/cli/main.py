"""The `natattn` command: which sub-command, and how its errors end. Nothing heavy is imported for help and version."""

import os
import sys

HELP = """\
natattn: transformer training experiments in which attention informs the optimizer

usage: natattn COMMAND [key=value ...]

commands:
  train      train a standard and a natural-attention model side by side on the same batches
  report     print the result table of one or more run folders, and make a page of it
  analyze    study a model's attention: a page with its energies, temperatures, cascades and spectra
  reproduce  rebuild the papers' tables and figures, with seeds, intervals and a verdict for every claim
  sample     let a trained arm of a run write text
  doctor     examine this installation and machine, and say what to do about what is broken

examples:
  natattn train model=natural optim=aif            the default: GPT-2 nano on Python's standard library
  natattn train size=pico data=text data.train=my.txt train.steps=500
  natattn train -m optim=adamw,aif seed=0,1        a sweep: four runs
  natattn train task=vision                        images instead of text; or task=multimodal
  natattn train resume=outputs/RUN                 go on with an interrupted run
  natattn report outputs/RUN                       its table again
  natattn sample run=outputs/RUN prompt="def "
  natattn analyze run=outputs/RUN                  attention as a statistical-mechanical system
  natattn reproduce study=all budget=smoke         every study in little, in minutes

natattn COMMAND --help tells more; natattn --version prints the version.
shell completion: eval "$(natattn -sc install=bash)" (or zsh: same line; fish: natattn -sc install=fish | source)
"""

COMMANDS = ("train", "report", "sample", "analyze", "reproduce", "doctor")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong input, 130 or 143 stopped."""
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
        return _unknown_command(command)
    if any("\udc80" <= character <= "\udcff" for argument in rest for character in argument):
        print("natattn: an argument is not valid UTF-8; rename the file or give a glob", file=sys.stderr)
        return 2
    from natattn.cli.exit_codes import guarded, leave
    from natattn.cli.torchrun import started_by_torchrun

    code = guarded(lambda: _run(command, rest))
    if started_by_torchrun():
        leave(code)
    return code


def _run(command: str, arguments: list[str]) -> int:
    """A sub-command's exit code."""
    if command == "doctor":  # it works where the modules of the other commands cannot be imported
        from natattn.doctor import doctor

        return doctor(arguments)
    from natattn.cli import commands

    code: int = getattr(commands, command)(arguments)
    return code


def _typing_the_command() -> bool:
    """Whether the shell asks for completions of the word after `natattn`."""
    line = os.environ.get("COMP_LINE", "")
    return bool(line) and len(line.split()) + line.endswith(" ") <= 2


def _unknown_command(command: str) -> int:
    from natattn.cli.exit_codes import line_of
    from natattn.config.messages import suggestion

    print(line_of(f"{command}: no such command; {suggestion(command, COMMANDS)}"), file=sys.stderr)
    return 2
