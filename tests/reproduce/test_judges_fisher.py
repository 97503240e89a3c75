"""Judges of F2 and F5, on analyses with known answers."""

import math

import pytest

from natattn.analysis.verdicts import AnalysisResult
from natattn.reproduce.judges import JUDGES

SPREAD = (-0.02, -0.01, 0.0, 0.01, 0.02)


def analysed(sections, *, seed=None, steps=None):
    made = {
        name: {
            "tables": [{"headings": list(rows[0]), "rows": [list(row.values()) for row in rows]} for rows in tables],
            "maps": maps,
        }
        for name, (tables, maps) in sections.items()
    }
    return AnalysisResult("models", "text", seed, steps, made)


def level(above, *, half=0.004, kept=False, name="block"):
    row = {"tree": "python", "level": name, "sources": 30, "within": 0.5, "excess": above + 0.002,
           "95 % interval": "[0, 1]", "modularity excess": 0.01}  # fmt: skip
    more = {"excess of distance alone": 0.002, "excess above it": above, "low": above - half, "high": above + half}
    return row if kept else row | more


def tree(above, *, seed=None, **more):
    return analysed({"hierarchy": ([[level(above, **more)]], [])}, seed=seed)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([tree(0.03 + each / 10, seed=seed) for seed, each in enumerate(SPREAD)], "supported"),
        ([tree(-0.03 + each / 10, seed=seed) for seed, each in enumerate(SPREAD)], "refuted"),
        ([tree(each / 10, seed=seed) for seed, each in enumerate(SPREAD)], "no effect"),
        ([tree(0.01 + each, seed=seed) for seed, each in enumerate(SPREAD)], "inconclusive"),
        ([tree(0.03 + each / 10, seed=seed) for seed, each in enumerate(SPREAD[:4])], "inconclusive"),
        ([tree(-0.03)], "refuted"),
        ([tree(0.03)], "inconclusive"),
        ([tree(0.03, kept=True)], "inconclusive"),
        ([analysed({"hierarchy": ([], [])})], "inconclusive"),
    ],
)
def test_blocks_above_distance_alone(models, said):
    (found,), tables = JUDGES["hierarchy"]("f", models)
    assert (found.claim, found.verdict) == ("F2", said)
    assert [table.name for table in tables] == (
        ["hierarchy_levels"] if models[0].sections["hierarchy"]["tables"] else []
    )


def test_a_level_that_one_model_lacks_bars_support():
    models = [tree(0.03 + each / 10, seed=seed) for seed, each in enumerate(SPREAD)]
    other = tree(0.03, seed=9, name="class")
    findings, _ = JUDGES["hierarchy"]("f", [*models, other])
    assert [(finding.count, finding.verdict) for finding in findings] == [(5, "inconclusive"), (1, "inconclusive")]
    assert "1 without a value: fewer sources than a level needs" in findings[0].note


def layered(growth, *, layers=4, seed=None):
    maps = [
        {"name": "attention_distance", "layers": list(range(layers)),
         "values": [[10 * math.exp(growth * layer)] * 2 for layer in range(layers)]},
        {"name": "effective_rank", "layers": list(range(layers)), "values": [[5.0, 7.0]] * layers},
    ]  # fmt: skip
    return analysed({"heads": ([], maps)}, seed=seed)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([layered(0.2 + each, seed=seed) for seed, each in enumerate(SPREAD)], "supported"),
        ([layered(-0.2 + each, seed=seed) for seed, each in enumerate(SPREAD)], "refuted"),
        ([layered(each / 10, seed=seed) for seed, each in enumerate(SPREAD)], "no effect"),
        ([layered(0.2 + each, seed=seed) for seed, each in enumerate(SPREAD[:3])], "inconclusive"),
        ([layered(-0.2)], "refuted"),
        ([layered(-0.2, layers=2)], "inconclusive"),  # a line through two points
        ([layered(-0.2, layers=1)], "inconclusive"),
    ],
)
def test_distance_over_depth(models, said):
    (found,), _ = JUDGES["hierarchy"]("f", models)
    assert (found.claim, found.verdict) == ("F5", said)


def test_layers_have_a_table():
    _, tables = JUDGES["hierarchy"]("f", [layered(0.2 + each, seed=seed) for seed, each in enumerate(SPREAD)])
    by_layer, slopes = tables
    assert [row[2] for row in by_layer.rows] == [0, 1, 2, 3]
    assert by_layer.rows[0][3].value == pytest.approx(10)
    assert {row[4].value for row in by_layer.rows} == {6.0}
    assert slopes.rows[0][2].value == pytest.approx(0.2)
