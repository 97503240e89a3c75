"""Cascades on activity that can be counted by hand, and on branching processes of known ratio."""

import numpy as np
import pytest

from natattn.analysis.powerlaw import Rival, analyse_power_law
from natattn.analysis.questions.cascades import (
    AtThreshold,
    EntropyCascades,
    Law,
    activity,
    branching_ratio,
    cascades,
    shape_collapse,
    verdict,
)
from natattn.analysis.verdicts import AnalysisResult


def branching_series(ratio, count, drive, seed=0):
    """A(t+1) ~ Poisson(ratio · A(t) + drive)."""
    generator = np.random.default_rng(seed)
    values = np.empty(count, dtype=np.int64)
    now = round(drive / (1 - ratio))
    for index in range(count):
        now = generator.poisson(ratio * now + drive)
        values[index] = now
    return values


def trees(ratio, count, seed=0, largest=10_000_000):
    """Series of one ancestor's descendants by generation, quiet at both ends; trees that grow too large are dropped."""
    generator = np.random.default_rng(seed)
    series = []
    for _ in range(count):
        generations, now, total = [0], 1, 0
        while now and total < largest:
            generations.append(now)
            total += now
            now = generator.poisson(ratio * now)
        if not now:
            series.append(np.array([*generations, 0]))
    return series


def test_activity_counts_the_units_beyond_their_own_threshold():
    quiet, once, twice, constant = np.zeros(50), np.zeros(50), np.zeros(50), np.full(50, 0.1)
    once[10] = 1.0
    twice[[10, 30]] = -5.0
    found = activity(np.stack([quiet, once, twice, constant, np.full(50, np.nan)]), 3.0)
    assert np.flatnonzero(found).tolist() == [10, 30]
    assert found[[10, 30]].tolist() == [2, 1]
    scaled = activity(np.stack([quiet, once * 1e6 + 7, twice * 1e-6, constant]), 3.0)
    assert (found == scaled).all()


def test_nan_is_no_activity_and_does_not_hide_the_rest():
    signal = np.zeros(50)
    signal[10], signal[20:25] = 1.0, np.nan
    assert np.flatnonzero(activity(signal[None], 3.0)).tolist() == [10]


def test_cascades_are_runs_between_quiet_times_and_cut_ones_are_left_out():
    found = cascades([[3, 0, 1, 2, 0, 0, 5, 0, 7], [0, 0, 4, 4, 4, 0], [1, 1]])
    assert found.sizes.tolist() == [3, 5, 12]
    assert found.durations.tolist() == [2, 1, 3]
    assert [shape.tolist() for shape in found.shapes] == [[1, 2], [5], [4, 4, 4]]
    assert len(cascades([]).sizes) == 0


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("seen", [1.0, 0.1])
def test_the_robust_ratio_is_that_of_the_process_even_when_few_units_are_seen(ratio, seen):
    series = [branching_series(ratio, 20_000, 20.0, seed) for seed in range(4)]
    generator = np.random.default_rng(9)
    found = branching_ratio([generator.binomial(values, seen) for values in series])
    assert found.robust == pytest.approx(ratio, abs=0.04 if ratio < 0.9 else 0.015)
    if seen == 1.0:
        assert found.naive == pytest.approx(ratio, abs=0.02)
    else:
        assert found.naive < ratio - 0.05  # the bias that the other has not


def test_activity_without_memory_has_ratio_zero_and_none_without_activity():
    generator = np.random.default_rng(0)
    assert branching_ratio([generator.poisson(5.0, 5000)]).robust < 0.1
    assert branching_ratio([np.zeros(100)]) is None
    assert branching_ratio([np.full(100, 3)]) is None
    assert branching_ratio([[1], [2], [3], [4]]) is None  # nothing comes after anything
    assert branching_ratio([]) is None


def test_critical_trees_have_the_exponent_and_the_shape_of_the_mean_field():
    found = cascades(trees(1.0, 20_000))
    law = analyse_power_law(found.sizes, discrete=True, minimum=10.0)
    assert law.fit.exponent == pytest.approx(1.5, abs=0.05)
    collapse = shape_collapse(found, least_count=30, shortest=12)
    assert collapse.exponent == pytest.approx(2.0, abs=0.2)  # approached from below as durations grow
    assert collapse.error < 0.05
    middle = collapse.profiles[-1][len(collapse.profiles[-1]) // 2]
    assert middle > 1.3 * collapse.profiles[-1][[0, -1]].max()  # an arch


def test_subcritical_trees_have_a_cutoff():
    found = cascades(trees(0.8, 20_000))
    law = analyse_power_law(found.sizes, discrete=True, minimum=2.0)
    assert law.rivals["cutoff"].log_ratio < 0
    assert law.rivals["cutoff"].p_value < 1e-6
    assert law.cutoff == pytest.approx(1 / (0.8 - 1 - np.log(0.8)), rel=0.35)  # Borel's law


def test_shapes_need_two_durations():
    assert shape_collapse(cascades([[0, 1, 0, 1, 0]])) is None


@pytest.mark.parametrize(
    ("signals", "threshold", "said"), [(np.zeros(5), 1.0, "units, time"), (np.zeros((2, 5)), 0.0, "threshold=0")]
)
def test_bad_input_is_refused(signals, threshold, said):
    with pytest.raises(ValueError, match=said):
        activity(signals, threshold)


SPREAD = (-0.02, -0.01, 0.0, 0.01, 0.02)  # over five seeds


def row(tau, interval=None, threshold=1.0):
    law = None
    if tau is not None:
        rivals = {"cutoff": Rival(-30.0, 1e-9)}
        law = Law(2.5, (2.0, 3.0), 2.0, 0.0, 20.0, tau, interval, rivals, ("cutoff", "stretched_exponential"))
    return AtThreshold(threshold, 100, 3.0, 0.7, 0.8, None, None, law, {})


def model(*rows, seed=None):
    return AnalysisResult("models", "text", seed, None, {"cascades": EntropyCascades(rows)})


def of_seeds(tau):
    return [model(row(tau + shift), seed=seed) for seed, shift in enumerate(SPREAD)]


@pytest.mark.parametrize(
    ("models", "outcome"),
    [
        (of_seeds(1.52), "supported"),
        (of_seeds(1.9), "refuted"),
        (of_seeds(1.1), "refuted"),
        (of_seeds(1.6), "inconclusive"),
        (of_seeds(1.5)[:4], "inconclusive"),
        ([model(row(1.9, (1.8, 2.0)))], "refuted"),
        ([model(row(1.5, (1.45, 1.55)))], "inconclusive"),  # one model cannot support
        ([model(row(1.7, (1.55, 1.9)))], "inconclusive"),
    ],
)
def test_exponents_of_cascades(models, outcome):
    (found,), (table,) = verdict("k", models)
    assert (found.claim, found.verdict) == ("K2", outcome)
    assert "nearer than it: cutoff, stretched exponential" in found.note
    assert table.rows[0][table.headings.index("branching ratio")].value == pytest.approx(0.8)
    assert table.rows[0][table.headings.index("τ of the plain power law")].value == pytest.approx(2.5)


def test_every_threshold_is_a_row_and_one_without_cascades_is_inconclusive():
    models = [model(row(None), row(1.9 + shift, threshold=2.0), seed=seed) for seed, shift in enumerate(SPREAD)]
    findings, (table,) = verdict("k", models)
    assert [(finding.verdict, finding.count) for finding in findings] == [("inconclusive", 0), ("refuted", 5)]
    assert "too few cascades" in findings[0].note
    assert [cells[1] for cells in table.rows] == [1.0, 2.0]
