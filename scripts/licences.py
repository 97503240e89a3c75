"""Generate docs/licences.md: the licence of everything that an installation of natattn brings, from package metadata.

python scripts/licences.py [FILE]
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
NOT_STATED = "not stated"
LONGEST = 60  # characters of a licence's name; some packages put the whole text there
HEAD = """\
# Licences

natattn is licensed under MIT. This page lists its dependencies with the licences that their metadata states.
`python scripts/licences.py` generates it from the installed packages; this version is from {platform} with Python
{python}, and other platforms may differ. On Linux with CUDA, PyTorch also installs NVIDIA's libraries under NVIDIA's
licences. The digits in `natattn/data/images/digits.npz` are licensed under CC BY 4.0 (`digits.LICENSE.txt`).
"""


def direct() -> dict[str, list[str]]:
    """Return {group: names of the requirements in pyproject.toml}; those of every installation are in "always"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    return {group: sorted(Requirement(text).name for text in texts) for group, texts in groups.items()}


def licence_of(found: Distribution) -> str:
    """Return the licence: the expression if there is one, else the classifiers, else the first line of the text."""
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if "License :: " in line]
    if named := [name for name in classifiers if name != "OSI Approved"]:
        return ", ".join(sorted(set(named)))
    text = (str(metadata.get("License") or "").strip().splitlines() or [""])[0].strip()
    return text if text and len(text) <= LONGEST else f"{text[:LONGEST]}…" if text else NOT_STATED


def needed_by(names: Iterable[str]) -> set[str]:
    """Return the names of all direct and indirect requirements on this platform."""
    waiting, found = list(names), set[str]()
    while waiting:
        new = {canonicalize_name(other) for other in _requirements(waiting.pop())} - found
        found |= new
        waiting += new
    return found


def _requirements(name: str) -> list[str]:
    """Return the requirements of an installed package on this platform, without its extras."""
    try:
        parsed = [Requirement(text) for text in distribution(name).requires or []]
    except PackageNotFoundError:
        return []
    return [each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def page() -> str:
    """Return the text of the page."""
    groups = direct()
    of_users = {canonicalize_name(name) for name in groups["always"]}
    lines = [HEAD.format(platform=sys.platform, python=".".join(map(str, sys.version_info[:2])))]
    lines += ["## Every installation", "", *_table(groups["always"])]
    others = needed_by(groups["always"])
    lines += ["", "## Their requirements", "", *_table(name for name in sorted(others) if name not in of_users)]
    for group, names in groups.items():
        if group != "always":
            lines += ["", f"## The extra `natattn[{group}]`", "", *_table(names)]
    return "\n".join(lines) + "\n"


def _table(names: Iterable[str]) -> list[str]:
    rows = []
    for name in names:
        try:
            found = distribution(name)
            rows.append(f"| {name} | {found.version} | {_cell(licence_of(found))} |")
        except PackageNotFoundError:
            rows.append(f"| {name} | not installed here | unknown |")
    return ["| package | version | licence |", "|---|---|---|", *rows]


def _cell(text: str) -> str:
    return re.sub(r"([|\\<])", r"\\\1", text)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")
    print(f"licences: {target}")
