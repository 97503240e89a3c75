"""The scripts that look for vulnerabilities and licences: nothing looked up is not "nothing found"."""

import importlib
import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch):
    """(audit, licences), imported as Python finds them when it runs one."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("audit"), importlib.import_module("licences")
    for name in ("audit", "licences"):
        sys.modules.pop(name, None)


def entry(name: str, *flaws: str, skipped: bool = False) -> dict[str, object]:
    if skipped:
        return {"name": name, "skip_reason": "Dependency not found on PyPI"}
    return {"name": name, "version": "1.0", "vulns": [{"id": flaw, "fix_versions": ["1.1"]} for flaw in flaws]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([entry("a"), entry("b")], 0, "2 of 2 packages looked up, 0 vulnerabilities"),
        ([entry("a", "CVE-1"), entry("b")], 1, "a 1.0: CVE-1, mended in 1.1"),
        ([entry("a", skipped=True), entry("b", skipped=True)], 3, "nothing was looked up: none of 2 packages"),
        ([entry("a"), entry("b", skipped=True)], 3, "not looked up: b"),
        ([entry("a"), entry("natattn", skipped=True)], 0, "1 of 1 packages looked up"),
    ],
)
def test_an_audit_says_what_was_looked_up(packages, code, said, scripts):
    audit, _ = scripts
    found, lines = audit.report(json.dumps({"dependencies": packages}), "")
    assert found == code
    assert said in "\n".join(lines)


@pytest.mark.parametrize("output", ["", "not JSON", "{}", "[]"])
def test_an_audit_that_cannot_reach_its_database_says_so(output, scripts):
    audit, _ = scripts
    code, lines = audit.report(output, "Traceback\nConnectionError: no route")
    assert code == 3
    assert lines == ["nothing was looked up: pip-audit could not reach its database (ConnectionError: no route)"]


def test_an_audit_without_pip_audit_says_how_to_get_it(scripts, monkeypatch, capsys, tmp_path):
    audit, licences = scripts
    monkeypatch.setattr(audit, "command", lambda: None)
    monkeypatch.setattr(licences, "ROOT", tmp_path)
    monkeypatch.setattr(licences, "PAGE", tmp_path / "licences.md")
    monkeypatch.setattr(licences, "page", lambda: "page")
    assert audit.main() == 2
    assert "pip install pip-audit" in capsys.readouterr().out
    assert (tmp_path / "licences.md").read_text() == "page"


def test_the_page_of_licences_names_every_direct_dependency(scripts):
    _, licences = scripts
    saved, now = licences.PAGE.read_text(encoding="utf-8"), licences.page()
    names = {name for group in licences.direct().values() for name in group}
    assert {"torch", "transformers", "pillow", "hypothesis"} <= names
    for name in names:
        assert f"| {name} |" in saved, f"{name}: run python scripts/licences.py"
        assert f"| {name} |" in now
    assert str(ROOT) not in saved
    assert "| markupsafe |" in now.lower()  # what torch needs in turn


def test_every_needed_package_states_a_licence(scripts):
    _, licences = scripts
    names = {*licences.direct()["always"], *licences.needed_by(licences.direct()["always"])}
    assert len(names) > 40
    silent = []
    for name in names:
        try:
            silent += [name] if licences.licence_of(distribution(name)) == licences.NOT_STATED else []
        except PackageNotFoundError:
            continue
    assert not silent
