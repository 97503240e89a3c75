"""Judges of K1 to K4 and R4, on analyses with known answers."""

import math

import pytest

from natattn.analysis.verdicts import AnalysisResult
from natattn.reproduce.judges import JUDGES

SPREAD = (-0.02, -0.01, 0.0, 0.01, 0.02)  # over five seeds


def analysis(section, *tables, seed=None, steps=None, where="text", maps=()):
    """Tables from rows as dictionaries."""
    made = [{"headings": list(rows[0]), "rows": [list(row.values()) for row in rows]} for rows in tables if rows]
    return AnalysisResult("models", where, seed, steps, {section: {"findings": [], "tables": made, "maps": list(maps)}})


def cascade(tau, *, cut=None, low=None, high=None, threshold=1.0):
    shown = {"threshold": threshold, "cascades": 100, "branching, robust": 0.8, "τ": tau, "95 % interval": "[2, 3]",
             "p": 0.0, "cutoff": 20.0, "better rival": "cutoff, stretched_exponential"}  # fmt: skip
    if cut is None:
        return shown
    return shown | {
        "low": 2.0, "high": 3.0, "τ with a cutoff": cut, "low with a cutoff": low, "high with a cutoff": high,
        "log ratio to a cutoff": -30.0,
    }  # fmt: skip


def of_seeds(centre, spread=SPREAD):
    return [analysis("cascades", [cascade(2.5, cut=centre + each)], seed=seed) for seed, each in enumerate(spread)]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (of_seeds(1.52), "supported"),
        (of_seeds(1.9), "refuted"),
        (of_seeds(1.1), "refuted"),
        (of_seeds(1.6), "inconclusive"),
        (of_seeds(1.5)[:4], "inconclusive"),
        ([analysis("cascades", [cascade(2.5, cut=1.9, low=1.8, high=2.0)])], "refuted"),
        ([analysis("cascades", [cascade(2.5, cut=1.5, low=1.45, high=1.55)])], "inconclusive"),  # one model
        ([analysis("cascades", [cascade(2.5, cut=1.7, low=1.55, high=1.9)])], "inconclusive"),
        ([analysis("cascades", [cascade(2.5)])], "refuted"),  # kept before: the plain law's, [2, 3]
    ],
)
def test_exponents_of_cascades(models, said):
    (found,), (table,) = JUDGES["cascades"]("k", models)
    assert (found.claim, found.verdict) == ("K2", said)
    assert "nearer than it: cutoff, stretched exponential" in found.note
    assert table.rows[0][table.headings.index("branching ratio")].value == pytest.approx(0.8)
    assert table.rows[0][table.headings.index("τ of the plain power law")].value == pytest.approx(2.5)


def test_every_threshold_is_a_row_and_one_without_cascades_is_inconclusive():
    models = [
        analysis(
            "cascades", [cascade(None, threshold=1.0), cascade(2.5 + each, cut=1.9 + each, threshold=2.0)], seed=seed
        )
        for seed, each in enumerate(SPREAD)
    ]
    findings, (table,) = JUDGES["cascades"]("k", models)
    assert [(finding.verdict, finding.count) for finding in findings] == [("inconclusive", 0), ("refuted", 5)]
    assert "too few cascades" in findings[0].note
    assert [row[1] for row in table.rows] == [1.0, 2.0]


def test_cascades_without_thresholds():
    findings, tables = JUDGES["cascades"]("k", [analysis("cascades")])
    assert [(finding.verdict, tables) for finding in findings] == [("inconclusive", [])]


CURVE = {"entropy S, nats": 2.0, "heat capacity C": 1.0, "order parameter m": 0.5}


def scanned(length, seed, steps):
    rows = [
        {"temperature": t, "correlation length ξ, tokens": length * t, "susceptibility χ": 3.0, **CURVE}
        for t in (0.5, 1.0, 2.0)
    ]
    return analysis("frozen", rows, seed=seed, steps=steps)


def test_correlation_lengths_over_temperature_and_training():
    models = [scanned(length, seed, steps) for steps, length in ((100, 4.0), (200, 8.0)) for seed in range(5)]
    findings, (by_temperature, by_steps) = JUDGES["correlation"]("k", models)
    assert findings == []
    assert [row[:3] for row in by_temperature.rows][:3] == [
        ("text, 100 steps", "scores frozen", t) for t in (0.5, 1, 2)
    ]
    assert len(by_temperature.rows) == 6
    place = by_steps.headings.index("correlation length ξ, tokens")
    assert [(row[1], row[2], row[place].value) for row in by_steps.rows] == [(100, 1.0, 4.0), (200, 1.0, 8.0)]


def test_peaks_over_the_context_are_compared_with_what_is_trivial():
    rows = [
        {"peak of": of, "tokens": tokens, "T": 1.0, "height": height, "width in log T": 1.0}
        for of, tokens, height in (("heat_capacity", 16, math.log(16)), ("susceptibility", 16, 8.0))
    ]
    _, (table,) = JUDGES["correlation"]("k", [analysis("sizes", rows)])
    assert [row[-1] for row in table.rows] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("name", JUDGES)
def test_analyses_without_the_section_say_nothing(name):
    assert JUDGES[name]("k", [analysis("patterns"), analysis("curves", seed=1)]) == ([], [])
    assert JUDGES[name]("k", []) == ([], [])
