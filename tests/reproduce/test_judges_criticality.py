"""Judges of K1 to K4 and R4, on analyses with known answers."""

import math

import pytest

from natattn.analysis.scaling import GridPoint, laws, optima
from natattn.analysis.sections import scaling as scaling_section
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


def lead(values, *, layers=("mean of layers",), apart=0.01):
    """Values of None have no peak inside."""
    known = [value for value in values if value is not None]
    means = [
        {"runs": "adamw", "layer": layer, "seeds": len(values), "with a peak inside": len(known), "peak at step": 50.0,
         "fastest fall at step": 70.0, "lead, log steps": sum(known) / max(1, len(known)), "95 % interval": "[—, —]"}
        for layer in layers
    ]  # fmt: skip
    own = [
        {"runs": "adamw", "layer": layer, "seed": seed, "a peak inside": "no" if value is None else "yes",
         "own lead, log steps": value, "evaluations apart, log steps": apart}
        for layer in layers for seed, value in enumerate(values)
    ]  # fmt: skip
    return analysis("training", means, own)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lead([0.3, 0.32, 0.28, 0.31, 0.29]), "supported"),
        (lead([-0.3, -0.32, -0.28, -0.31, -0.29]), "refuted"),
        (lead([0.01, -0.01, 0.02, -0.02, 0.0]), "no effect"),
        (lead([0.3, -0.3, 0.4, -0.2, 0.1]), "inconclusive"),
        (lead([0.3, 0.32, 0.28, 0.31]), "inconclusive"),  # four seeds
        (lead([0.3, 0.32, 0.28, 0.31, 0.29, None]), "inconclusive"),  # one without a peak
        (lead([0.3, 0.32, 0.28, 0.31, 0.29], apart=0.5), "inconclusive"),  # less than the evaluations can tell
    ],
)
def test_leads(found, said):
    findings, tables = JUDGES["lead"]("k", [found])
    assert [(finding.claim, finding.verdict) for finding in findings] == [("K4", said), ("R4", said)]
    assert [table.name for table in tables] == ["lead"]


def test_layers_are_shown_and_not_judged():
    findings, tables = JUDGES["lead"]("k", [lead([0.3, 0.32, 0.28, 0.31, 0.29], layers=("0", "1", "mean of layers"))])
    assert len(findings) == 2
    assert [len(table.rows) for table in tables] == [1, 3]
    whole, adjusted = tables[0].rows[0], tables[1].rows[0]
    assert adjusted[5] == pytest.approx(3 * whole[6])  # three equal rows


def test_leads_of_two_seeds_that_are_one():
    """The count is of seeds, not of rows."""
    twice = lead([0.3, 0.32, 0.28, 0.31, 0.29])
    rows = twice.sections["training"]["tables"][1]["rows"]
    rows[4][2] = rows[3][2]
    findings, _ = JUDGES["lead"]("k", [twice])
    assert [(finding.count, finding.verdict) for finding in findings] == [(4, "inconclusive")] * 2


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


def grid(power, seeds):
    """Valleys whose best N·d is 4·(L·H)^power, as the section writes them."""
    points = [
        GridPoint(
            context, entropy, 2, product // 2, seed,
            0.1 * math.log(product / (4 * (context * entropy) ** power * (1 + 0.002 * seed))) ** 2, 1000, 9.0,
        )
        for context in (32, 64, 128, 256) for entropy in (0.5, 1.5, 3.0) for seed in range(seeds)
        for product in (2, 4, 8, 16, 32, 64, 128, 256, 512)
    ]  # fmt: skip
    found = optima(points)
    tables = [scaling_section._law_table(laws(found)), scaling_section._optimum_table(found)]
    made = [{"headings": list(table.headings), "rows": [list(row) for row in table.rows]} for table in tables]
    return AnalysisResult("grid", "grammars", None, None, {"scaling": {"tables": made}})


@pytest.mark.parametrize(
    ("power", "seeds", "said"),
    [(0.5, 5, "supported"), (0.5, 4, "inconclusive"), (0.2, 5, "refuted"), (0.0, 1, "refuted")],
)
def test_powers_of_the_best_product(power, seeds, said):
    findings, tables = JUDGES["scaling"]("k", [grid(power, seeds)])
    assert [(finding.claim, finding.verdict) for finding in findings] == [("K3", said)] * 2
    assert [finding.estimate.value for finding in findings] == pytest.approx([power] * 2, abs=1e-3)
    assert findings[0].count == 12 * seeds
    laws_table, best = tables
    free = next(row for row in laws_table.rows if row[1] == "free powers of L and H")
    assert free[2] == findings[0].estimate
    assert free[4].verdict == said
    assert len(best.rows) == 12 * seeds


def test_a_grid_without_a_valley_is_inconclusive():
    findings, tables = JUDGES["scaling"]("k", [analysis("scaling")])
    assert [finding.verdict for finding in findings] == ["inconclusive"] * 2
    assert "not measured" in findings[0].note
    assert tables == []


@pytest.mark.parametrize("name", JUDGES)
def test_analyses_without_the_section_say_nothing(name):
    assert JUDGES[name]("k", [analysis("patterns"), analysis("curves", seed=1)]) == ([], [])
    assert JUDGES[name]("k", []) == ([], [])
