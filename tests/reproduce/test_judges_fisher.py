"""Judges of F1 to F5 and of the theorems, on analyses with known answers."""

import math

import pytest

from natattn.analysis.fisher_errors import IDENTITY, IDENTITY_AND_PATTERN, KEY_GRAM, KRONECKER, MARGINAL, QUERY_GRAM
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


def score(name, error, gap, half, *, kept=False):
    """Cosines of its heads are those of error ± half."""
    least, greatest = (math.sqrt(1 - bound**2) for bound in (error + half, error - half))
    row = {"in score space": name, "cosine": 0.5, "least": least, "greatest": greatest, "error as it is": 1.0,
           "error at best scale": error}  # fmt: skip
    if kept:
        return row
    return row | {
        "heads": 16, "low": error - half, "high": error + half, "gap to diag(mean a)": gap,
        "low of the gap": gap - half, "high of the gap": gap + half,
    }  # fmt: skip


def inverse(name, error, gap, half, *, damping=0.1, kept=False):
    row = {"λ": damping, "of the inverse": name, "cosine": 0.5, "least": 0.1, "greatest": 0.2, "error as it is": None,
           "error at best scale": error}  # fmt: skip
    return row if kept else row | {"gap to the identity": gap, "heads": 16, "low": gap - half, "high": gap + half}


def conditioned(ratio, half, *, kept=False):
    rows = []
    for name, own in ((IDENTITY, 0.0), (KRONECKER, ratio)):
        row = {"preconditioner": name, "λ_max / mean": 100.0 * math.exp(own), "least": 1.0, "greatest": 200.0,
               "evenness: mean² / mean square": 0.5}  # fmt: skip
        more = {"log ratio to the identity": own, "heads": 4, "low": own - half, "high": own + half}
        rows.append(row if kept else row | more)
    return rows


def fisher(error=0.5, gap=0.3, inverse_gap=0.1, ratio=-2.0, *, half=0.02, shift=0.0, kept=False, seed=None, steps=None):
    scores = [
        score(name, own + shift, gap + shift, half, kept=kept)
        for name, own in ((KEY_GRAM, error), (QUERY_GRAM, error), (MARGINAL, error - gap))
    ]
    inverses = [
        inverse(name, own + shift, own_gap + shift, half, damping=damping, kept=kept)
        for damping in (0.01, 0.1)
        for name, own, own_gap in ((IDENTITY_AND_PATTERN, 0.6, inverse_gap), (IDENTITY, 0.6 - inverse_gap, 0.0))
    ]
    tables = [scores, inverses, conditioned(ratio + shift, half, kept=kept)]
    return analysed({"fisher": (tables, [])}, seed=seed, steps=steps)


def of_seeds(count=5, **numbers):
    return [fisher(shift=SPREAD[seed] / 10, seed=seed, **numbers) for seed in range(count)]


def verdicts(models, claim):
    return [finding.verdict for finding in JUDGES["fisher"]("f", models)[0] if finding.claim == claim]


@pytest.mark.parametrize(
    ("numbers", "errors", "gap"),
    [
        ({"error": 0.5, "gap": 0.3}, "refuted", "refuted"),
        ({"error": 0.05, "gap": -0.3}, "supported", "supported"),
        ({"error": 0.1, "gap": 0.0}, "no effect", "no effect"),
        ({"error": 0.5, "gap": 0.3, "count": 4}, "inconclusive", "inconclusive"),
    ],
)
def test_the_fisher_over_seeds(numbers, errors, gap):
    assert verdicts(of_seeds(**numbers), "F1") == [errors, errors, gap]


@pytest.mark.parametrize(
    ("numbers", "errors", "gap"),
    [
        ({"error": 0.5, "gap": 0.3}, "refuted", "refuted"),
        ({"error": 0.05, "gap": -0.3, "half": 0.01}, "inconclusive", "inconclusive"),  # support needs seeds
        ({"error": 0.5, "gap": 0.3, "kept": True}, "refuted", "inconclusive"),  # no interval of the difference
        ({"error": 0.11, "gap": 0.3, "kept": True}, "inconclusive", "inconclusive"),  # some heads are below 0.1
    ],
)
def test_the_fisher_of_one_model(numbers, errors, gap):
    assert verdicts([fisher(**numbers)], "F1") == [errors, errors, gap]


def test_the_inverse_is_judged_at_the_declared_damping():
    assert verdicts(of_seeds(inverse_gap=-0.2), "F3") == ["refuted", "supported"]
    assert verdicts(of_seeds(inverse_gap=0.2), "F3") == ["refuted", "refuted"]
    assert verdicts(of_seeds(inverse_gap=0.0), "F3") == ["refuted", "no effect"]
    # The other damping is in the table.
    _, tables = JUDGES["fisher"]("f", of_seeds())
    spaces = {row[2] for row in tables[0].rows}
    assert spaces == {"F, score space", "(F + λI)⁻¹, score space, λ = 0.01", "(F + λI)⁻¹, score space, λ = 0.1"}


@pytest.mark.parametrize(("kept", "ratio", "said"), [(False, -2.0, "supported"), (True, -2.0, "supported"),
                                                     (False, 2.0, "refuted"), (False, 0.0, "no effect")])  # fmt: skip
def test_conditioning(kept, ratio, said):
    models = of_seeds(ratio=ratio, kept=kept)
    (found,) = [finding for finding in JUDGES["fisher"]("f", models)[0] if finding.claim == "F4"]
    assert (found.verdict, found.count) == (said, 5)
    assert found.estimate.value == pytest.approx(ratio)


def test_steps_are_rows():
    models = [model for steps in (0, 500) for model in of_seeds(steps=steps, error=0.5 if steps else 0.05)]
    findings, tables = JUDGES["fisher"]("f", models)
    said = {(f.where, f.verdict) for f in findings if "over the keys as the Fisher" in f.what}
    assert said == {("text, 0 steps", "supported"), ("text, 500 steps", "refuted")}
    assert [row[1] for row in tables[1].rows] == [0, 0, 500, 500]
    assert [table.name for table in tables] == ["fisher_errors", "conditioning", "fisher_verdicts"]


def test_what_a_section_lacks_is_not_measured():
    """As of a model with rotary embedding, whose W_Q is left out, or with other words for its rows."""
    only = analysed({"fisher": ([[score(MARGINAL, 0.3, 0.0, 0.01)]], [])})
    findings, _ = JUDGES["fisher"]("f", [only])
    assert {(finding.claim, finding.verdict, finding.count) for finding in findings} == {
        (claim, "inconclusive", 0) for claim in ("F1", "F3", "F4")
    }
    assert all("not measured" in finding.note and math.isnan(finding.estimate.value) for finding in findings)


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


def theorem(claim, verdict, counterexample=""):
    return {"claim": claim, "statement": f"statement of {claim}", "verdict": verdict, "worst excess": 0.5, "cases": 30,
            "why": "because", "smallest counterexample": counterexample}  # fmt: skip


def test_theorems_are_refuted_by_what_is_shown_and_supported_by_a_proof():
    pasted = (
        "A = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)\nx = torch.tensor(1.0, dtype=torch.float64)"
    )
    rows = [theorem("P3", "refuted", pasted), theorem("P6 row", "supported"), theorem("P6 total", "refuted"),
            theorem("D1", "refuted", pasted), theorem("D3'", "refuted", pasted)]  # fmt: skip
    findings, (table,) = JUDGES["theorems"]("t", [analysed({"theorems": ([rows], [])})] * 2)
    assert [(finding.claim, finding.verdict, finding.count) for finding in findings] == [
        ("P3", "refuted", 30), ("P6", "supported", 30), ("P6", "inconclusive", 30), ("D3'", "refuted", 30),
    ]  # fmt: skip
    assert findings[0].note == "because; smallest counterexample: A = [[0.5, 0.5], [0.5, 0.5]], x = 1.0"
    assert "no counterexample in 30 cases" in findings[1].note
    assert [row[0] for row in table.rows] == ["P3", "P6 row", "P6 total", "D3'"]


def test_a_counterexample_of_any_search_is_enough():
    searches = [
        analysed({"theorems": ([[row]], [])}) for row in (theorem("P3", "supported"), theorem("P3", "refuted", "A"))
    ]
    (found,), _ = JUDGES["theorems"]("t", searches)
    assert found.verdict == "refuted"
