"""What the judges say of the analyses that the project keeps, which were made before some columns were there."""

import json
from collections import Counter
from pathlib import Path

import pytest

from natattn.analysis.settings import AnalyzeSettings
from natattn.config import compose as config
from natattn.reproduce.analyses import key_of_analysis
from natattn.reproduce.judges import JUDGES
from natattn.reproduce.results import AnalysisResult, Finding, StudyTable, overall

KEPT = Path(__file__).parents[2] / "docs" / "results" / "analysis"


def judged(judge: str, *names: str) -> tuple[list[Finding], list[StudyTable]]:
    """Of kept pages, each as a model or set of runs without a seed of its own."""
    sections = {name: json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))["sections"] for name in names}
    return JUDGES[judge]("kept", [AnalysisResult(name, name, None, None, found) for name, found in sections.items()])


def test_kept_analyses_are_still_found_by_their_keys():
    """A new key of `natattn analyze` must not change what the others hash to: nothing kept would be found any more."""
    asked = config.validated(config.plain_values(config.compose([], "analyze")), AnalyzeSettings)
    assert key_of_analysis("run", asked, ["a run"]) == "bc30c1fad691da70"  # as when the analyses were kept
    of_text = asked.model_copy(update={"tower": "text"})
    assert key_of_analysis("run", of_text, ["a run"]) == "91b987475fa6545e"


def test_critical_temperatures_do_not_fall_with_the_width():
    findings, tables = judged("widths", "widths_heads4", "widths_dim32")
    assert Counter((f.claim, f.verdict, f.count) for f in findings) == {("K1", "refuted", 18): 8}
    assert overall(findings) == "refuted"
    assert {table.name: len(table.rows) for table in tables} == {
        "widths": 8, "widths_by_place": 48, "peaks_by_width": 8,
    }  # fmt: skip
    assert all("digits that the page shows" in finding.note for finding in findings)


def test_the_best_product_is_not_the_claims():
    findings, _ = judged("scaling", "head_grid")
    assert [(f.claim, f.verdict, f.count, f.estimate.value) for f in findings] == [
        ("K3", "refuted", 20, 0.042), ("K3", "refuted", 20, -0.202),
    ]  # fmt: skip
    assert "p = 9.8e-12" in findings[0].note


def test_no_lead_is_sure():
    findings, tables = judged("lead", "repeats")
    assert [(f.claim, f.verdict, f.count) for f in findings] == [("K4", "inconclusive", 10), ("R4", "inconclusive", 10)]
    assert findings[0].estimate.value == pytest.approx(0.126, abs=1e-3)
    assert (findings[0].estimate.low, findings[0].estimate.high) == pytest.approx((-0.008, 0.260), abs=1e-3)
    # The first layer, for three places to look at.
    first = tables[1].rows[0]
    assert first[4].low > 0
    assert first[5] == pytest.approx(0.016, abs=1e-3)


def test_few_seeds_with_a_peak_are_no_claim():
    findings, _ = judged("lead", "fine")
    assert {(f.verdict, f.count) for f in findings} == {("inconclusive", 2)}


def test_cascades_of_a_pretrained_model_have_other_exponents():
    findings, _ = judged("cascades", "minilm")
    assert Counter(f.verdict for f in findings) == {"refuted": 4, "inconclusive": 1}
    assert overall(findings) == "refuted"


def test_the_products_of_attention_are_not_the_fisher():
    findings, tables = judged("fisher", "minilm", "ours")
    for claim, said in {"F1": "refuted", "F3": "refuted", "F4": "inconclusive"}.items():
        assert overall([finding for finding in findings if finding.claim == claim]) == said
    assert tables[0].rows[0][-1].value == pytest.approx(0.6451145719371528)


def test_blocks_without_a_floor_were_not_measured():
    findings, tables = judged("hierarchy", "minilm")
    assert {f.verdict for f in findings if f.claim == "F2"} == {"inconclusive"}
    assert all("not measured: this analysis has no floor" in f.note for f in findings if f.claim == "F2")
    assert len(tables[0].rows) == 9


def test_theorems():
    findings, _ = judged("theorems", "minilm", "ours")
    said = {claim: overall([f for f in findings if f.claim == claim]) for claim in {f.claim for f in findings}}
    both_ways = dict.fromkeys(("P1", "P5", "P6"), "inconclusive")  # true in one reading, false in another
    assert said == both_ways | dict.fromkeys(("P2", "P3", "P4", "D3'", "D4'", "D5'"), "refuted")
    assert Counter(f.verdict for f in findings) == {"refuted": 9, "supported": 3}


@pytest.mark.parametrize("name", JUDGES)
def test_tables_are_whole(name):
    everything = sorted(path.stem for path in KEPT.glob("*.json"))
    findings, tables = judged(name, *everything)
    assert tables
    for table in tables:
        assert table.name.replace("_", "").isalnum()
        assert len(table.rows) == len(table.runs) > 0
        assert {len(row) for row in table.rows} == {len(table.headings)}
    assert all(finding.study == "kept" and finding.note for finding in findings)
