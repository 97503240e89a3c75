"""Look for known vulnerabilities in what is installed, with pip-audit where that is there, and list the licences.

python scripts/audit.py
Exit code: 0 nothing known of all that was looked up, 1 vulnerabilities, 2 pip-audit is not installed, 3 some packages
could not be looked up. pip-audit itself ends with 0 when it could not look up any.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
from typing import Any

import licences

INSTALL = "pip-audit is not installed: python -m pip install pip-audit, also in an environment of its own"


def command() -> list[str] | None:
    """How pip-audit is started for the environment of this Python; None where it is not there."""
    if importlib.util.find_spec("pip_audit") is not None:
        start = [sys.executable, "-m", "pip_audit"]
    elif found := shutil.which("pip-audit"):
        start = [found]
    else:
        return None
    return [*start, "--format", "json", "--progress-spinner", "off", "--path", sysconfig.get_path("purelib")]


def report(output: str, error: str) -> tuple[int, list[str]]:
    """Exit code and lines, of what pip-audit printed."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        cause = (error.strip().splitlines() or ["it printed nothing"])[-1]
        return 3, [f"nothing was looked up: pip-audit could not reach its database ({cause})"]
    packages = [each for each in packages if each["name"] != "natattn"]  # a checkout is not on the index
    skipped = [each for each in packages if "skip_reason" in each]
    found = [(each, flaw) for each in packages for flaw in each.get("vulns", ())]
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no release'}"
        for each, flaw in found
    ]
    if skipped and len(skipped) == len(packages):
        return 3, [f"nothing was looked up: none of {len(packages)} packages was found; is the database reachable?"]
    lines.append(f"{len(packages) - len(skipped)} of {len(packages)} packages looked up, {len(found)} vulnerabilities")
    if skipped:
        lines.append(f"not looked up: {', '.join(sorted(each['name'] for each in skipped))}")
    return (1 if found else 3 if skipped else 0), lines


def main() -> int:
    """Audit and list."""
    start = command()
    if start is None:
        code, lines = 2, [INSTALL]
    else:
        ended = subprocess.run(start, capture_output=True, text=True)
        code, lines = report(ended.stdout, ended.stderr)
    print("\n".join(lines))
    licences.PAGE.write_text(licences.page(), encoding="utf-8")
    print(f"licences: {licences.PAGE.relative_to(licences.ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
