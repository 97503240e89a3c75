"""Holm's rule for fits, and how models become repetitions."""

import math

import numpy as np
import pytest

from natattn.analysis.verdicts import (
    AnalysisResult,
    Fit,
    Group,
    Measured,
    Row,
    adjusted,
    findings_of,
    groups,
    mean_of,
    near,
    one_sided,
)
from natattn.statistics.paired import Difference, differences_of, slope_interval


def analysed(seed=None, steps=None, name="models", results=None, where="text"):
    return AnalysisResult(name, where, seed, steps, {"fisher": {}} if results is None else results)


def test_means_as_fits_are_adjusted_as_samples_are():
    random = np.random.default_rng(3)
    samples = [list(centre + random.normal(size=count)) for centre, count in ((0.0, 5), (3.0, 6), (0.9, 9), (1.5, 5))]
    for mine, theirs in zip(adjusted(list(map(mean_of, samples))), differences_of(samples), strict=True):
        assert (mine.mean, mine.count) == (pytest.approx(theirs.mean), theirs.count)
        assert mine.p_value == pytest.approx(theirs.p_value)
        assert mine.interval == pytest.approx(theirs.interval)


def test_a_slope_alone_keeps_its_own_interval():
    x, y = [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.2, 1.9, 3.1, 4.4]
    slope, half = slope_interval(x, y)
    (found,) = adjusted([Fit(slope, slope - half, slope + half, 3, 5)], 0.5)
    assert found.mean == pytest.approx(slope - 0.5)
    assert found.interval == pytest.approx((slope - half - 0.5, slope + half - 0.5))
    assert 0 < found.p_value < 0.05


def test_a_fit_without_an_interval_takes_no_part():
    known = Fit(1.0, 0.8, 1.2, 10, 12)
    (alone,) = adjusted([known])
    beside, unknown = adjusted([known, Fit(1.0, math.nan, math.nan, 0, 2)])
    assert beside == alone
    assert math.isnan(unknown.p_value)
    assert all(map(math.isnan, unknown.interval))


def test_models_that_differ_in_their_seed_are_one_group():
    models = [
        analysed(1, 100),
        analysed(2, 100),
        analysed(1, 200),
        analysed(),
        analysed(),
        analysed(3, 100, results={}),
    ]
    found = groups(models, "fisher")
    assert [(group.label, len(group.members)) for group in found] == [
        ("text, 100 steps", 2), ("text, 200 steps", 1), ("text", 1), ("text", 1),
    ]  # fmt: skip
    assert [group.is_one_model for group in found] == [False, False, True, True]


def judged(values, *, claimed="below", seeds=True, low=math.nan, high=math.nan, against=0.0):
    members = tuple(analysed(seed if seeds else None) for seed in range(len(values)))
    measured = tuple(Measured(value, low, high, over="9 heads") for value in values)
    row = Row("F1", "error", Group("text", members), measured, against=against)
    (found,) = findings_of("study", [row], one_sided(claimed, 0.01))
    return found


@pytest.mark.parametrize(
    ("values", "claimed", "said"),
    [
        ([-1.0, -1.1, -0.9, -1.05, -0.95], "below", "supported"),
        ([-1.0, -1.1, -0.9, -1.05, -0.95], "above", "refuted"),
        ([1.0, 1.1, 0.9, 1.05, 0.95], "above", "supported"),
        ([-0.002, 0.001, 0.002, -0.001, 0.0], "below", "no effect"),
        ([-1.0, 1.1, -0.9, 1.05, -0.95], "below", "inconclusive"),
        ([-1.0, -1.1, -0.9, -1.05], "below", "inconclusive"),  # four seeds
        ([-1.0, -1.1, -0.9, -1.05, -0.95, math.nan], "below", "inconclusive"),  # one is missing
        ([1.0, 1.1, 0.9, 1.05, 0.95, math.nan], "below", "refuted"),  # which does not help the claim
        ([math.nan] * 5, "below", "inconclusive"),
    ],
)
def test_verdicts_over_seeds(values, claimed, said):
    assert judged(values, claimed=claimed).verdict == said


def test_a_seed_counts_once():
    members = tuple(analysed(seed) for seed in (1, 1, 1, 2, 2))
    row = Row("F1", "error", Group("text", members), tuple(map(Measured, (1.0, 2.0, 3.0, 5.0, 7.0))))
    (found,) = findings_of("study", [row], one_sided("above", 0.0))
    assert (found.count, found.verdict, found.estimate.value) == (2, "inconclusive", 4.0)
    assert "2 of at least 5 seeds" in found.note


def test_an_estimate_is_shown_in_its_own_units():
    found = judged([0.5, 0.6, 0.55, 0.52, 0.58], against=0.1)
    assert (found.verdict, found.count) == ("refuted", 5)
    assert found.estimate.value == pytest.approx(0.55)
    assert 0.1 < found.estimate.low < 0.55 < found.estimate.high < 0.7


def test_one_model_refutes_but_does_not_support():
    refuted = judged([0.5], seeds=False, low=0.4, high=0.6)
    assert (refuted.verdict, refuted.count, refuted.p_value) == ("refuted", 1, None)
    assert (refuted.estimate.low, refuted.estimate.high) == (0.4, 0.6)
    assert "9 heads" in refuted.note
    assert judged([-0.5], seeds=False, low=-0.6, high=-0.4).verdict == "inconclusive"
    assert judged([0.5], seeds=False).verdict == "inconclusive"  # no interval
    assert judged([0.5], seeds=True, low=0.4, high=0.6).verdict == "inconclusive"  # a trained model has seeds


def test_rows_are_adjusted_together():
    sample = [-1.0, -0.4, -1.2, -0.6, -0.1]
    members = tuple(analysed(seed) for seed in range(5))
    row = Row("F1", "error", Group("text", members), tuple(map(Measured, sample)))
    other = Row("F1", "error", Group("text", members), tuple(map(Measured, [3.0, -2.0, 1.0, -2.5, 1.0])))
    (alone,) = findings_of("study", [row], one_sided("below", 0.0))
    beside, _ = findings_of("study", [row, other], one_sided("below", 0.0))
    assert (alone.verdict, beside.verdict) == ("supported", "inconclusive")
    assert beside.p_value == pytest.approx(2 * alone.p_value)


@pytest.mark.parametrize(
    ("interval", "count", "complete", "said"),
    [
        ((-0.05, 0.09), 5, True, "supported"),
        ((-0.05, 0.09), 4, True, "inconclusive"),
        ((-0.05, 0.09), 5, False, "inconclusive"),
        ((0.05, 0.15), 5, True, "inconclusive"),
        ((0.11, 0.5), 5, True, "refuted"),
        ((-0.5, -0.11), 5, False, "refuted"),
        ((math.nan, math.nan), 5, True, "inconclusive"),
    ],
)
def test_about_another_number(interval, count, complete, said):
    assert near(0.1)(Difference(0.0, count, interval, math.nan, None), complete) == said


def test_repetitions_that_happen_to_be_equal_say_nothing_and_take_no_place_from_others():
    equal, other = adjusted([mean_of([0.3, 0.3]), mean_of([0.1, 0.2, 0.15, 0.12, 0.18])])
    assert equal.p_value == 1.0
    assert equal.interval == (-math.inf, math.inf)
    (alone,) = adjusted([mean_of([0.1, 0.2, 0.15, 0.12, 0.18])])
    assert other.p_value == pytest.approx(2 * alone.p_value)


def test_a_result_is_read_by_question_and_type():
    found = analysed(results={"fisher": 3})
    assert found.result("fisher", int) == 3
    with pytest.raises(KeyError):
        found.result("widths", int)
    with pytest.raises(TypeError, match="fisher: int is not str"):
        found.result("fisher", str)
