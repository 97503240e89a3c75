"""Which versions are installed, whether they are those that natattn is made for, and whether they can be imported."""

import contextlib
import importlib
import io
import platform
import tomllib
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from natattn.doctor.findings import Finding, cause

# Where the name of the module is not that of the distribution.
_MODULES = {"hydra-core": "hydra", "scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}


def versions() -> Iterator[Finding]:
    """Python, natattn, and everything that it needs."""
    python, requirements = _required()
    yield _python(python)
    try:
        yield Finding("natattn", metadata.version("natattn"))
    except metadata.PackageNotFoundError:
        yield Finding("natattn", "a checkout that is not installed")
    for requirement in requirements:
        yield _package(requirement)


def _required() -> tuple[str, list[str]]:
    """(versions of Python, requirements) of pyproject.toml in a checkout, else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        content: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if content.get("name") == "natattn":
            return content["requires-python"], list(content["dependencies"])
    found = metadata.metadata("natattn")
    needed = metadata.requires("natattn") or []
    return found["Requires-Python"] or "", [line for line in needed if "extra ==" not in line]


def _python(required: str) -> Finding:
    version = platform.python_version()
    if _fits(version, required):
        return Finding("Python", f"{version}, fits {required}")
    return Finding("Python", f"{version}, outside {required}", "broken", f"make an environment with Python {required}")


def _package(requirement: str) -> Finding:
    """What is installed for a requirement such as ``torch>=2.11,<2.14``."""
    name = requirement.partition(";")[0].split("[")[0]
    for sign in "<>=!~ ":
        name = name.partition(sign)[0]
    required = requirement.partition(";")[0].removeprefix(name).strip()
    advice = f'python -m pip install "{requirement}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", "broken", advice)
    failure = _import_failure(_MODULES.get(name, name.replace("-", "_")))
    if failure is not None:
        return Finding(name, f"{version}, cannot be imported: {failure}", "broken", f"{advice} --force-reinstall")
    if not _fits(version, required):
        return Finding(name, f"{version}, outside {required}", "broken", advice)
    return Finding(name, f"{version}{f', fits {required}' if required else ''}")


def _import_failure(module: str) -> str | None:
    """Why a module cannot be imported; None where it can."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            return cause(error)
    return None


def _fits(version: str, required: str) -> bool:
    """Whether a version is in a range; true where it cannot be told, for want of `packaging`."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(required).contains(version, prereleases=True)
