"""The doctor's findings by what they are about."""

import sys

from natattn.doctor.findings import Finding, examined


def found_of(part, check) -> dict[str, Finding]:
    return {finding.what: finding for finding in examined(part, check)}


def without(monkeypatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
