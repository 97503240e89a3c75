"""Verdicts on F1, F3 and F4, from results with known errors."""

import dataclasses
import math

import pytest

from natattn.analysis.fisher_errors import (
    FITTED,
    IDENTITY,
    IDENTITY_AND_PATTERN,
    KEY_GRAM,
    KRONECKER,
    MARGINAL,
    QUERY_GRAM,
)
from natattn.analysis.questions.fisher import FisherErrors, Inverse, OfInverse, OfScores, Preconditioned, ScoreSpace
from natattn.analysis.questions.fisher_claims import verdict
from natattn.analysis.verdicts import AnalysisResult

SPREAD = (-0.02, -0.01, 0.0, 0.01, 0.02)


def score(error, gap, half):
    """The cosines of the heads are those of error ± half."""
    interval, of_gap = (error - half, error + half), (gap - half, gap + half)
    least, greatest = (math.sqrt(1 - bound**2) for bound in (error + half, error - half))
    return OfScores(0.5, least, greatest, 1.0, error, (0.5, 0.4, 0.6), 16, interval, gap, of_gap)


def inverse(error, gap, half):
    return OfInverse(0.5, 0.1, 0.2, math.nan, error, None, gap, 16, (gap - half, gap + half))


def conditioned(ratio, half):
    interval = (ratio - half, ratio + half)
    return Preconditioned(100.0 * math.exp(ratio), 1.0, 200.0, 0.5, ratio, 4, interval, ())


def fisher(error=0.5, gap=0.3, inverse_gap=0.1, ratio=-2.0, *, half=0.02, shift=0.0, seed=None, steps=None):
    errors = {KEY_GRAM: error, QUERY_GRAM: error, MARGINAL: error - gap}
    scores = {name: score(value + shift, gap + shift, half) for name, value in errors.items()}
    inverses = tuple(
        Inverse(damping, {
            IDENTITY_AND_PATTERN: inverse(0.6 + shift, inverse_gap + shift, half),
            IDENTITY: inverse(0.6 - inverse_gap + shift, shift, half),
            FITTED: inverse(0.5, 0.0, half),
        })
        for damping in (0.01, 0.1)
    )  # fmt: skip
    space = ScoreSpace((0, 1), 16, 32, scores, 0, {}, inverses, 0, 0, {})
    spectra = {name: conditioned(value + shift, half) for name, value in ((IDENTITY, 0.0), (KRONECKER, ratio))}
    result = FisherErrors(space, "left out", "left out", spectra)
    return AnalysisResult("models", "text", seed, steps, {"fisher": result})


def of_seeds(count=5, **numbers):
    return [fisher(shift=SPREAD[seed] / 10, seed=seed, **numbers) for seed in range(count)]


def verdicts(models, claim):
    return [finding.verdict for finding in verdict("f", models)[0] if finding.claim == claim]


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
    ],
)
def test_the_fisher_of_one_model(numbers, errors, gap):
    assert verdicts([fisher(**numbers)], "F1") == [errors, errors, gap]
    assert all("16 heads" in finding.note for finding in verdict("f", [fisher()])[0] if finding.claim == "F1")


def test_the_inverse_is_judged_at_the_declared_damping():
    assert verdicts(of_seeds(inverse_gap=-0.2), "F3") == ["refuted", "supported"]
    assert verdicts(of_seeds(inverse_gap=0.2), "F3") == ["refuted", "refuted"]
    assert verdicts(of_seeds(inverse_gap=0.0), "F3") == ["refuted", "no effect"]
    _, tables = verdict("f", of_seeds())
    spaces = {row[2] for row in tables[0].rows}
    assert spaces == {"F, score space", "(F + λI)⁻¹, score space, λ = 0.01", "(F + λI)⁻¹, score space, λ = 0.1"}


@pytest.mark.parametrize(("ratio", "outcome"), [(-2.0, "supported"), (2.0, "refuted"), (0.0, "no effect")])
def test_conditioning(ratio, outcome):
    (found,) = [finding for finding in verdict("f", of_seeds(ratio=ratio))[0] if finding.claim == "F4"]
    assert (found.verdict, found.count) == (outcome, 5)
    assert found.estimate.value == pytest.approx(ratio)


def test_steps_are_rows():
    models = [model for steps in (0, 500) for model in of_seeds(steps=steps, error=0.5 if steps else 0.05)]
    findings, tables = verdict("f", models)
    outcomes = {(f.where, f.verdict) for f in findings if "over the keys as the Fisher" in f.what}
    assert outcomes == {("text, 0 steps", "supported"), ("text, 500 steps", "refuted")}
    assert [row[1] for row in tables[1].rows] == [0, 0, 500, 500]
    assert [table.name for table in tables] == ["fisher_errors", "conditioning", "fisher_verdicts"]


def test_a_model_whose_queries_are_left_out_has_no_f4():
    model = fisher()
    result = dataclasses.replace(model.results["fisher"], conditioning="left out")
    findings, tables = verdict("f", [dataclasses.replace(model, results={"fisher": result})])
    (found,) = [finding for finding in findings if finding.claim == "F4"]
    assert (found.verdict, found.count) == ("inconclusive", 0)
    assert "not measured" in found.note
    assert math.isnan(found.estimate.value)
    assert [table.name for table in tables] == ["fisher_errors", "fisher_verdicts"]
