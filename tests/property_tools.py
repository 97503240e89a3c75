"""What the property tests share: how many examples, how a command ended, and a count of what was tried."""

import contextlib
import io
from collections import Counter
from dataclasses import dataclass

from hypothesis import settings

from natattn.cli.main import main

TRIED: Counter[str] = Counter()
_FEW = 10  # examples of the profile that stands for "as many as the test says"


def examples(few: int) -> settings:
    """So many examples by default; with --hypothesis-profile=slow thirty times as many."""
    return settings(max_examples=max(1, few * settings.default.max_examples // _FEW))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    error: str

    @property
    def is_one_line(self) -> bool:
        """A mistake of the user's, said in one line that nothing on a terminal can hide."""
        line = self.error.removesuffix("\n")
        return self.code == 2 and line.startswith("natattn: ") and len(line) > 9 and line.isprintable()


def message_of(error: Exception) -> str:
    """What a refusal says, which must be one line."""
    message = str(error)
    assert message
    assert "\n" not in message
    return message


def run(*arguments: str) -> Ended:
    """The command, in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(list(arguments))
    return Ended(code, out.getvalue(), error.getvalue())
