"""`natattn doctor`: what of this installation and machine works, what does not, and what to do about it.

Nothing but Python's standard library is imported before a check needs it: the doctor must work where little else does.
"""

import sys

from natattn.cli.help import DOCTOR_HELP
from natattn.doctor.findings import Check, Finding, examined
from natattn.errors import UserError

__all__ = ["doctor", "examine"]


def doctor(arguments: list[str]) -> int:
    """`natattn doctor`: 0 if all is well, 1 when something is broken."""
    if "--help" in arguments or "-h" in arguments:
        print(DOCTOR_HELP, end="")
        return 0
    quick = _is_quick(arguments)
    from natattn.doctor.show import show

    if sys.stderr.isatty() and not quick:
        print("examining; half a minute, or a minute on a slow machine (quick=true: seconds) …", file=sys.stderr)
    findings = examine(quick=quick)
    show(findings, sys.stdout)
    return 1 if any(finding.state == "broken" for finding in findings) else 0


def examine(*, quick: bool) -> list[Finding]:
    """What every check finds; ``quick`` leaves out those that compute for seconds."""
    from natattn.doctor import kernels, machine, services, storage, trial, versions

    checks: list[tuple[str, Check]] = [
        ("versions", versions.versions),
        ("machine", machine.machine),
        ("kernels", kernels.kernels),
        ("storage", storage.storage),
        ("services", services.services),
    ]
    if not quick:
        checks += [("compiling", kernels.compiling), ("training", trial.training)]
    return [finding for part, check in checks for finding in examined(part, check)]


def _is_quick(arguments: list[str]) -> bool:
    """Raises: UserError for any other argument than quick=true|false."""
    quick = False
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "quick" or value not in ("true", "false"):
            raise UserError(f"{argument}: not understood; valid: quick=true, quick=false")
        quick = value == "true"
    return quick
