"""Judges of K1 to K4 and R4, on analyses with known answers."""

import pytest

from natattn.analysis.verdicts import AnalysisResult
from natattn.reproduce.judges import JUDGES


def analysis(section, *tables, seed=None, steps=None, where="text", maps=()):
    """Tables from rows as dictionaries."""
    made = [{"headings": list(rows[0]), "rows": [list(row.values()) for row in rows]} for rows in tables if rows]
    return AnalysisResult("models", where, seed, steps, {section: {"findings": [], "tables": made, "maps": list(maps)}})


@pytest.mark.parametrize("name", JUDGES)
def test_analyses_without_the_section_say_nothing(name):
    assert JUDGES[name]("k", [analysis("patterns"), analysis("curves", seed=1)]) == ([], [])
    assert JUDGES[name]("k", []) == ([], [])
