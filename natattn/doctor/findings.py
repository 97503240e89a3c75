"""What a check says, and how checks are run: none can end the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        what: was looked at.
        found: there.
        state: note: not as it could be, and natattn works; broken: something of natattn does not.
        advice: what to do about it, in one line; only where the state is not ok.
        part: of the table, which ``examined`` fills in.
    """

    what: str
    found: str
    state: State = "ok"
    advice: str = ""
    part: str = ""


Check = Callable[[], Iterable[Finding]]


def examined(part: str, check: Check) -> list[Finding]:
    """What a check finds; an error in it is a finding too, after those that came before."""
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(Finding(finding.what, finding.found, finding.state, finding.advice, part))
    except Exception as error:
        advice = f"the check of {part} itself failed; what is broken above may be why"
        findings.append(Finding(part, f"could not be examined: {cause(error)}", "broken", advice, part))
    return findings


def cause(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}"[:200] if lines else name


def amount(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
