"""Judges of K1 to K4 and R4, on analyses with known answers."""

import math

import pytest

from natattn.analysis.scaling import GridPoint, laws, optima
from natattn.analysis.sections import scaling as scaling_section
from natattn.analysis.verdicts import AnalysisResult
from natattn.reproduce.judges import JUDGES


def analysis(section, *tables, seed=None, steps=None, where="text", maps=()):
    """Tables from rows as dictionaries."""
    made = [{"headings": list(rows[0]), "rows": [list(row.values()) for row in rows]} for rows in tables if rows]
    return AnalysisResult("models", where, seed, steps, {section: {"findings": [], "tables": made, "maps": list(maps)}})


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
