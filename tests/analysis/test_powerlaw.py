"""Power-law fits on samples whose law is known, and against the powerlaw package."""

import warnings

import numpy as np
import pytest
from scipy.special import zeta

from natattn.analysis.powerlaw import TailFit, analyse_power_law, draw, fit_tail

LAWS = [(False, 1.0, 1.5), (False, 3.0, 2.5), (True, 1.0, 1.5), (True, 1.0, 2.5), (True, 5.0, 2.0)]


def sample(discrete, minimum, exponent, count=4000, seed=0):
    return draw(TailFit(exponent, minimum, 0, 0.0), count, np.random.default_rng(seed), discrete=discrete)


@pytest.mark.parametrize(("discrete", "minimum", "exponent"), LAWS)
def test_the_exponent_is_recovered_within_its_error(discrete, minimum, exponent):
    values = sample(discrete, minimum, exponent)
    fit = fit_tail(values, discrete=discrete, minimum=minimum)
    assert fit.tail == len(values)
    error = (exponent - 1) / np.sqrt(len(values))  # of the continuous estimator; the discrete one's is near it
    assert abs(fit.exponent - exponent) < 3 * error
    free = fit_tail(values, discrete=discrete)
    assert abs(free.exponent - exponent) < 4 * error * np.sqrt(len(values) / free.tail)
    assert free.distance < fit.distance + 1 / len(values)


@pytest.mark.parametrize(("discrete", "minimum", "exponent"), LAWS)
def test_it_agrees_with_the_powerlaw_package(discrete, minimum, exponent):
    import powerlaw

    values = sample(discrete, minimum, exponent, count=1500)
    fit = fit_tail(values, discrete=discrete, minimum=minimum)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(values, discrete=discrete, xmin=minimum, verbose=False).power_law
        assert fit.exponent == pytest.approx(theirs.alpha, abs=1e-3)
        assert fit.distance == pytest.approx(theirs.D, abs=1.0 / len(values))


@pytest.mark.parametrize(("minimum", "exponent"), [(1, 1.5), (1, 3.0), (7, 2.0)])
def test_discrete_values_are_drawn_with_their_probabilities(minimum, exponent):
    values = sample(True, minimum, exponent, count=40_000)
    assert values.min() == minimum
    assert (values == np.floor(values)).all()
    for value in (minimum, minimum + 1, minimum + 5):
        probability = float(value) ** -exponent / zeta(exponent, minimum)
        error = np.sqrt(probability * (1 - probability) / len(values))
        assert abs(np.mean(values == value) - probability) < 4 * error
    far = 1 << 17  # beyond the table
    probability = zeta(exponent, far) / zeta(exponent, minimum)
    assert abs(np.mean(values >= far) - probability) < 4 * np.sqrt(probability / len(values)) + 1e-12


def test_a_power_law_passes_and_its_interval_holds_the_exponent():
    found = analyse_power_law(sample(True, 1.0, 1.5, count=2000), discrete=True, replicas=40)
    assert found.p_value > 0.1
    assert found.interval[0] < 1.5 < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.3
    assert found.rivals["exponential"].log_ratio > 0
    assert found.rivals["exponential"].p_value < 0.01


@pytest.mark.parametrize("minimum", [None, 1.0], ids=["searched bound", "known bound"])
@pytest.mark.parametrize("name", ["lognormal", "exponential"])
def test_other_laws_are_refuted(name, minimum):
    generator = np.random.default_rng(0)
    values = {"lognormal": generator.lognormal(1.5, 1.0, 6000), "exponential": generator.exponential(10.0, 6000)}[name]
    found = analyse_power_law(np.ceil(values), discrete=True, replicas=30, minimum=minimum)
    assert found.p_value < 0.1
    assert found.rivals[name].log_ratio < 0


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("exponent", "cutoff"), [(1.5, 50.0), (1.2, 200.0), (2.0, 20.0)])
def test_the_cutoff_of_a_truncated_law_is_found(discrete, exponent, cutoff):
    values = sample(discrete, 1.0, exponent, count=60_000)
    kept = values[np.random.default_rng(1).random(len(values)) < np.exp(-values / cutoff)]
    found = analyse_power_law(kept, discrete=discrete, minimum=1.0)
    assert found.cutoff == pytest.approx(cutoff, rel=0.15)
    assert found.cutoff_exponent == pytest.approx(exponent, abs=0.05)
    assert found.rivals["cutoff"].log_ratio < 0
    assert found.rivals["cutoff"].p_value < 0.01


@pytest.mark.parametrize("discrete", [False, True])
def test_a_law_without_cutoff_gets_none(discrete):
    found = analyse_power_law(sample(discrete, 1.0, 1.5), discrete=discrete, minimum=1.0)
    assert found.cutoff > 1e4
    assert found.cutoff_exponent == pytest.approx(found.fit.exponent, abs=0.02)
    assert found.rivals["cutoff"].p_value > 0.05


def test_replicas_do_not_depend_on_the_number_of_processes_and_tell_their_progress():
    values = sample(False, 1.0, 2.0, count=300)
    told = []
    alone, together = (
        analyse_power_law(values, discrete=False, replicas=12, seed=3, processes=processes, advance=told.append)
        for processes in (1, 2)
    )
    assert alone == together
    assert sum(told) == 24
    assert analyse_power_law(values, discrete=False, replicas=12, seed=4).interval != alone.interval


def test_a_few_or_equal_values_have_no_fit():
    assert analyse_power_law([1.0] * 10, discrete=True).fit is None
    assert analyse_power_law([2.0] * 100, discrete=True, replicas=5).fit is None


def test_replicas_without_a_fit_leave_no_interval():
    found = analyse_power_law([1.0] * 99 + [2.0], discrete=True, replicas=1)  # the one that differs is not drawn again
    assert found.fit is not None
    assert found.interval is None


@pytest.mark.parametrize("values", [[1.0, -1.0], [0.0, 1.0], [1.0, np.inf], [1.0, np.nan]])
def test_values_must_be_positive_and_finite(values):
    with pytest.raises(ValueError, match="positive, finite"):
        analyse_power_law(values, discrete=False)


def test_discrete_values_must_be_whole():
    with pytest.raises(ValueError, match="whole"):
        analyse_power_law([1.0, 1.5], discrete=True)
