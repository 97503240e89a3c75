"""Leads of curves whose peak and fall are known, and the verdict on them (claims K4 and R4)."""

import dataclasses
import math

import numpy as np
import pytest

from natattn.analysis.questions import training
from natattn.analysis.questions.training import Lead, PlaceLeads, Training, lead_of_peak, verdict
from natattn.analysis.verdicts import AnalysisResult
from natattn.statistics.paired import t_interval


def curves(peak, fall):
    steps = np.unique(np.geomspace(1, 1000, 60).round())
    logs = np.log(steps)
    return steps, np.exp(-((logs - np.log(peak)) ** 2)), 5 - 3 / (1 + np.exp(-4 * (logs - np.log(fall))))


@pytest.mark.parametrize(("peak", "fall"), [(30, 120), (120, 30), (60, 60)])
def test_the_lead_of_a_peak(peak, fall):
    steps, quantity, losses = curves(peak, fall)
    found = lead_of_peak(np.append(0, steps), np.append(9.0, quantity), np.append(9.0, losses))
    assert found.is_inside
    assert found.lead == pytest.approx(math.log(fall / peak), abs=0.2)  # the spacing of the grid


def test_a_quantity_that_only_grows_has_no_peak():
    steps, _, losses = curves(30, 60)
    found = lead_of_peak(steps, steps, losses)
    assert not found.is_inside
    assert lead_of_peak([1, 2, 3], [1, 2, 1], [3, 2, 1]) is None


def place(values, *, layer="mean of layers", apart=0.01, label="adamw"):
    """Leads of runs that peak at step 50; a value of None has no peak inside."""
    leads = [
        Lead(50.0, 70.0, False, apart) if value is None else Lead(50.0, 50.0 * math.exp(value), True, apart)
        for value in values
    ]
    return PlaceLeads(label, layer, tuple(range(len(values))), tuple(leads))


def judged(*places):
    return verdict("k", [AnalysisResult("runs", "text", None, None, {"training": Training((), places)})])


CLEAR = (0.3, 0.32, 0.28, 0.31, 0.29)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (place(CLEAR), "supported"),
        (place([-value for value in CLEAR]), "refuted"),
        (place([0.01, -0.01, 0.02, -0.02, 0.0]), "no effect"),
        (place([0.3, -0.3, 0.4, -0.2, 0.1]), "inconclusive"),
        (place(CLEAR[:4]), "inconclusive"),  # four seeds
        (place([*CLEAR, None]), "inconclusive"),  # one without a peak
        (place(CLEAR, apart=0.5), "inconclusive"),  # less than the spacing of evaluations
        (dataclasses.replace(place(CLEAR), seeds=(0, 1, 2, 3, 3)), "inconclusive"),  # two runs of one seed
    ],
)
def test_verdict_on_leads(found, expected):
    findings, tables = judged(found)
    assert [(finding.claim, finding.verdict) for finding in findings] == [("K4", expected), ("R4", expected)]
    assert [table.name for table in tables] == ["lead"]
    assert findings[0].count == len(found.sample)


def test_the_interval_is_over_runs_with_a_peak():
    (finding, _), (table,) = judged(place([0.1, 0.2, 0.3, 0.4, 0.5, None, None]))
    centre, half = t_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (finding.estimate.low, finding.estimate.high) == pytest.approx((centre - half, centre + half))
    assert (finding.count, table.rows[0][1]) == (5, 7)
    assert "5 of 7 seeds have a peak" in finding.note
    assert finding.verdict == "inconclusive"


def test_layers_are_shown_and_not_judged():
    findings, tables = judged(*(place(CLEAR, layer=layer) for layer in ("0", "1", "mean of layers")))
    assert len(findings) == 2
    assert [len(table.rows) for table in tables] == [1, 3]
    whole, adjusted = tables[0].rows[0], tables[1].rows[0]
    assert adjusted[5] == pytest.approx(3 * whole[6])  # three equal rows


def test_kinds_of_runs_are_named_if_there_are_several():
    findings, _ = judged(place(CLEAR), place(CLEAR, label="muon"))
    assert [finding.where for finding in findings] == ["text, adamw", "text, muon"] * 2


def test_the_section_says_which_came_first(monkeypatch):
    monkeypatch.setattr(training, "draw", lambda panels: b"")
    section = training.section(Training((), (place(CLEAR), place([0.3, None, None, None, None]))))
    assert "log steps, 5 of 5 seeds with a peak" in section.findings[0]
    assert section.findings[0].endswith("first the peak, then the fall.")
    assert "peaks inside the run with 1 of 5 seeds" in section.findings[1]
    assert [len(table.rows) for table in section.tables] == [2, 10]
