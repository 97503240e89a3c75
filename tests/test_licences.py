"""The page of licences names every dependency, and every dependency states a licence."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def licences(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("licences")
    sys.modules.pop("licences", None)


def test_the_page_names_every_direct_dependency(licences: ModuleType):
    saved = licences.PAGE.read_text(encoding="utf-8")
    names = {name for group in licences.direct().values() for name in group}
    assert {"torch", "transformers", "pillow", "hypothesis"} <= names
    assert [name for name in names if f"| {name} |" not in saved] == [], "run python scripts/licences.py"
    assert str(ROOT) not in saved


def test_every_needed_package_states_a_licence(licences: ModuleType):
    names = {*licences.direct()["always"], *licences.needed_by(licences.direct()["always"])}
    assert len(names) > 40
    silent = []
    for name in names:
        try:
            silent += [name] if licences.licence_of(distribution(name)) == licences.NOT_STATED else []
        except PackageNotFoundError:
            continue
    assert silent == []
