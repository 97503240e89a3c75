import dataclasses
import math
from collections.abc import Sequence

import pytest

from natattn.analysis.questions import theorems
from natattn.report.table import Estimate, Finding
from natattn.reproduce.claims import CLAIMS, Claim
from natattn.reproduce.ledger import by_claim, standardised, strongest, tally
from natattn.reproduce.results import StudyResult
from natattn.reproduce.study import read_arguments
from natattn.statistics.paired import Verdict

LEDGER = [
    "R1", "R2", "R3", "R3p", "R4", "A1", "A2", "A3", "F1", "F2", "F3", "F4", "F5", "K1", "K2", "K3", "K4",
    "P1", "P2", "P3", "P4", "P5", "P6", "D3'", "D4'", "D5'", "O1",
]  # the papers' order, ours last  # fmt: skip
STUDIES = {
    "published": {"R3p"},
    "claims": {"R1", "R2", "R3", "A1", "A2"},
    "optimizers": {"O1"},
    "fisher": {"F1", "F2", "F3", "F4", "F5"},
    "criticality": {"R4", "K1", "K2", "K4"},
    "scaling": {"K3"},
    "theorems": {"P1", "P2", "P3", "P4", "P5", "P6", "D3'", "D4'", "D5'"},
    "modalities": {"A3"},
}


def finding(
    claim: str = "R1",
    verdict: Verdict = "inconclusive",
    estimate: Estimate = Estimate(0.1, -0.1, 0.3),  # noqa: B008
    count: int = 5,
    against: float = 0.0,
) -> Finding:
    return Finding(claim, "claims", "aif − adamw", "text", estimate, "nats/token", count, verdict, against=against)


def result(findings: Sequence[Finding], name: str = "claims") -> StudyResult:
    return StudyResult(name, "smoke", "a study", {}, tuple(findings))


def test_the_ledger_has_every_claim_in_its_order() -> None:
    assert list(CLAIMS) == LEDGER
    assert all(claim.id == name for name, claim in CLAIMS.items())


@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu"])
def test_the_rates_of_modalities_are_trained_as_the_tables_say(budget) -> None:
    (asked,) = read_arguments(["study=modalities", f"budget={budget}"]).settings
    study = asked.study.at(budget)
    for corpus in study.corpora.values():
        of_task = any(override.startswith("task=") for override in corpus.overrides)
        assert of_task == ("task.learning_rate_scale=1" in corpus.overrides), corpus


def test_every_claim_is_tested_by_its_study() -> None:
    assert {study: {c.id for c in CLAIMS.values() if c.study == study} for study in STUDIES} == STUDIES


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
def test_a_row_says_what_it_needs_to(claim: Claim) -> None:
    assert claim.statement[0].isupper()
    assert claim.statement.endswith(".")
    assert len(claim.statement) <= 100  # two lines of the picture
    assert claim.formula
    assert claim.source
    assert claim.definition == "" or claim.definition.startswith("our definition: ")
    assert not claim.definition.endswith(".")
    for text in dataclasses.astuple(claim):
        assert text == text.strip()
        assert "  " not in text  # lines that were joined


def test_theorems_are_those_that_are_checked() -> None:
    checked = {name.split()[0] for name in theorems.THEOREMS}
    assert STUDIES["theorems"] <= checked
    assert set(theorems.CLAIMS) == STUDIES["theorems"]


def test_findings_are_sorted_by_the_ledger_and_none_is_lost() -> None:
    found = by_claim([result([finding("K1"), finding("R1")]), result([finding("R1", "refuted")], "other")], CLAIMS)
    assert [claim.id for claim, _ in found] == LEDGER
    sizes = {claim.id: [f.verdict for f in findings] for claim, findings in found if findings}
    assert sizes == {"R1": ["inconclusive", "refuted"], "K1": ["inconclusive"]}
    with pytest.raises(ValueError, match="Z9"):
        by_claim([result([finding("Z9")])], CLAIMS)


@pytest.mark.parametrize(
    ("against", "estimate", "expected"),
    [
        (0.0, Estimate(0.4, 0.2, 0.6), 2.0),
        (0.0, Estimate(-0.4, -0.5, -0.3), -4.0),
        (1.5, Estimate(2.5, 2.0, 3.0), 2.0),
        (0.5, Estimate(0.5, 0.3, 0.7), 0.0),
        (0.0, Estimate(0.4, -math.inf, 0.6), 2.0),  # the side that is known
        (0.0, Estimate(0.4), math.nan),
        (0.0, Estimate(0.4, 0.4, 0.4), math.nan),
        (0.0, Estimate(math.nan), math.nan),
    ],
)
def test_effects_are_in_half_widths_from_what_is_claimed(against: float, estimate: Estimate, expected: float) -> None:
    assert standardised(finding("R1", estimate=estimate, against=against)) == pytest.approx(expected, nan_ok=True)


SMALL, LARGE = Estimate(0.2, 0.1, 0.3), Estimate(-0.9, -1.0, -0.8)
EXACT, UNKNOWN = Estimate(1.0), Estimate(math.nan)


@pytest.mark.parametrize(
    ("findings", "place"),
    [
        ([("supported", SMALL, 5), ("supported", LARGE, 5)], 1),
        ([("refuted", SMALL, 5), ("inconclusive", LARGE, 5)], 0),  # of the verdict of all
        ([("refuted", LARGE, 5), ("refuted", EXACT, 1)], 1),  # a counterexample
        ([("inconclusive", EXACT, 1), ("inconclusive", SMALL, 5)], 1),
        ([("no effect", LARGE, 5), ("no effect", SMALL, 9)], 1),  # repetitions
        ([("supported", SMALL, 5), ("refuted", LARGE, 5)], 1),  # together inconclusive, which none is alone
        ([("supported", SMALL, 5), ("inconclusive", UNKNOWN, 0)], 0),
        ([("inconclusive", UNKNOWN, 0), ("inconclusive", UNKNOWN, 1)], 0),
        ([("supported", LARGE, 5), ("supported", LARGE, 5)], 0),  # the first of equals
    ],
)
def test_the_strongest(findings, place: int) -> None:
    given = [finding("R1", *each) for each in findings]
    assert strongest(given) is given[place]


def test_tally() -> None:
    verdicts: list[Verdict] = ["refuted", "supported", "inconclusive", "supported"]
    assert tally([finding(verdict=verdict) for verdict in verdicts]) == "2 supported, 1 refuted, 1 inconclusive"
