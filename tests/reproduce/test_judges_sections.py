"""The headings that judges read are those that sections write: both are run here, one on what the other made."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.analysis.sections import heads, hierarchy, measures, power_laws
from natattn.analysis.sections.fisher import fisher_section
from natattn.analysis.sections.scans import finite_size_section, scan_section
from natattn.analysis.sections.sources import TreeText
from natattn.analysis.subject import Subject
from natattn.analysis.verdicts import AnalysisResult
from natattn.reproduce.judges import JUDGES

SETTINGS = SimpleNamespace(
    seed=0, replicas=2, law_replicas=3, processes=1, thresholds=(1.5, 9.0),
    text=SimpleNamespace(batch_size=4, sequences=6), temperatures=SimpleNamespace(values=(0.5, 1.0, 2.0)),
)  # fmt: skip


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.6}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    return Subject(
        name="tiny", facts={}, model=model, tokens=torch.randint(31, (24, 32)), words=[], tokenizer=None, data=None,
        is_causal=True, source="",
    )  # fmt: skip


def judged(judge, *sections, seeds=5):
    """The same model five times over, through the file."""
    written = {section.name: json.loads(json.dumps(section.to_json(), allow_nan=False)) for section in sections}
    return JUDGES[judge]("study", [AnalysisResult("tiny", "text", seed, 10, written) for seed in range(seeds)])


def cell(table, heading):
    return table.rows[0][table.headings.index(heading)]


def test_fisher(subject):
    section = fisher_section(subject, SETTINGS, lambda count: None)
    findings, tables = judged("fisher", section)
    assert {finding.claim for finding in findings} == {"F1", "F3", "F4"}
    assert all(math.isfinite(finding.estimate.value) and finding.count == 5 for finding in findings)
    identity = [row for row in tables[0].rows if row[2:4] == ("F, score space", "identity")]
    assert 0 < identity[0][4].value < 1
    # One model keeps the intervals over its heads.
    alone, _ = JUDGES["fisher"]("study", [AnalysisResult("tiny", "text", None, None, {"fisher": section.to_json()})])
    assert all(finding.estimate.low <= finding.estimate.value <= finding.estimate.high for finding in alone)
    assert any("6 heads" in finding.note for finding in alone)


def test_the_identity_in_score_space(subject):
    """Its cosine with F from eigenvalues, against matrices."""
    from natattn.analysis.fisher_errors import ScoreFisher
    from natattn.analysis.patterns import attention_patterns
    from natattn.analysis.sections.fisher_parts import ScoreSpace

    space = ScoreSpace.of(subject)
    pattern = attention_patterns(subject.model, subject.tokens[:4])[1].double()
    exact = ScoreFisher(pattern).exact
    expected = exact.diagonal(dim1=-2, dim2=-1).sum(-1) / (exact.flatten(-2).norm(dim=-1) * 32**0.5)
    assert space.found["identity"].cosine[1].tolist() == pytest.approx(expected.mean(0).tolist())


def test_cascades(subject):
    findings, (table,) = judged("cascades", power_laws.cascades_section(subject, SETTINGS, lambda count: None))
    assert [finding.claim for finding in findings] == ["K2", "K2"]
    assert (findings[0].count, findings[1].count) == (5, 0)  # nothing is nine deviations away
    assert cell(table, "τ with a cutoff").value == pytest.approx(findings[0].estimate.value)
    assert cell(table, "τ of the plain power law").value > 1
    assert "none with a cutoff" not in findings[0].note


def test_scans(subject):
    sections = [scan_section(kind, subject, SETTINGS, lambda count: None) for kind in ("frozen", "propagated")]
    sections.append(finite_size_section(subject, SETTINGS, lambda count: None))
    findings, tables = judged("correlation", *sections)
    assert findings == []
    assert {table.name: len(table.rows) for table in tables} == {
        "correlation_by_temperature": 6, "correlation_by_steps": 1, "peaks_by_context": 4,
    }  # fmt: skip
    assert all(math.isfinite(found.value) for found in tables[1].rows[0][3:])


def test_hierarchy(subject, monkeypatch):
    torch.manual_seed(1)
    blocks = [np.repeat(np.arange(4), 8), np.repeat(np.arange(8), 4)]
    texts = [TreeText("python", torch.randint(31, (32,)), {"block": blocks[i % 2]}) for i in range(6)]
    monkeypatch.setattr(hierarchy, "_texts", lambda subject, wanted: iter(texts))
    section = hierarchy.hierarchy_section(subject, SETTINGS, lambda count: None)
    row = dict(zip(section.tables[0].headings, section.tables[0].rows[0], strict=True))
    assert row["excess above it"] == pytest.approx(row["excess"] - row["excess of distance alone"])
    assert row["low"] < row["excess above it"] < row["high"]
    findings, tables = judged("hierarchy", section, heads.heads_section(subject, SETTINGS, lambda count: None))
    assert [(finding.claim, finding.count) for finding in findings] == [("F2", 5), ("F5", 5)]
    assert findings[0].estimate.value == pytest.approx(row["excess above it"])
    assert [table.name for table in tables] == ["hierarchy_levels", "hierarchy_layers", "hierarchy_slopes"]


def test_theorems(subject):
    findings, _ = judged("theorems", measures.theorems_section(subject, SETTINGS, lambda count: None))
    assert {finding.claim for finding in findings} == {"P1", "P2", "P3", "P4", "P5", "P6", "D3'", "D4'", "D5'"}
