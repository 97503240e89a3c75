"""Write docs/licences.md: the licence of everything that an installation of natattn brings, as its own metadata says.

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
LONGEST = 60  # letters of a licence's name; some put its whole text where the name belongs
HEAD = """\
# Licences

natattn is under the MIT licence. This is what it brings with it, and the licence of each as its own metadata states it;
`python scripts/licences.py` writes this page anew from what is installed, `python scripts/audit.py` looks for known
vulnerabilities as well. It was last written on {platform} with Python {python}: elsewhere there may be others. On Linux
with CUDA, PyTorch also brings NVIDIA's libraries, which are under NVIDIA's own licences.
"""


def direct() -> dict[str, list[str]]:
    """{group: names of what pyproject.toml asks for}: that of every installation is called "always"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    return {group: sorted(Requirement(text).name for text in texts) for group, texts in groups.items()}


def licence_of(found: Distribution) -> str:
    """Its licence: the expression where there is one, else its classifiers' words, else the first line of the text."""
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if "License :: " in line]
    if named := [name for name in classifiers if name != "OSI Approved"]:
        return ", ".join(sorted(set(named)))
    text = (str(metadata.get("License") or "").strip().splitlines() or [""])[0].strip()
    return text if text and len(text) <= LONGEST else f"{text[:LONGEST]}…" if text else NOT_STATED


def needed_by(names: Iterable[str]) -> set[str]:
    """Names of the packages that these ask for here, and those in turn."""
    waiting, found = list(names), set[str]()
    while waiting:
        new = {canonicalize_name(other) for other in _requirements(waiting.pop())} - found
        found |= new
        waiting += new
    return found


def _requirements(name: str) -> list[str]:
    """What an installed package asks for here, without its extras."""
    try:
        parsed = [Requirement(text) for text in distribution(name).requires or []]
    except PackageNotFoundError:
        return []
    return [each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def page() -> str:
    """The page."""
    groups = direct()
    of_users = {canonicalize_name(name) for name in groups["always"]}
    lines = [HEAD.format(platform=sys.platform, python=".".join(map(str, sys.version_info[:2])))]
    lines += ["## What every installation has", "", *_table(groups["always"])]
    others = needed_by(groups["always"])
    lines += ["", "## What those need in turn", "", *_table(name for name in sorted(others) if name not in of_users)]
    for group, names in groups.items():
        if group != "always":
            lines += ["", f"## What `natattn[{group}]` adds", "", *_table(names)]
    return "\n".join(lines) + "\n"


def _table(names: Iterable[str]) -> list[str]:
    rows = []
    for name in names:
        try:
            found = distribution(name)
            rows.append(f"| {name} | {found.version} | {_cell(licence_of(found))} |")
        except PackageNotFoundError:
            rows.append(f"| {name} | not installed here | not known here |")
    return ["| package | version | licence |", "|---|---|---|", *rows]


def _cell(text: str) -> str:
    return re.sub(r"([|\\<])", r"\\\1", text)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")
    print(f"licences: {target}")
