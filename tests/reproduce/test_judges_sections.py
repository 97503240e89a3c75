"""The headings that judges read are those that sections write: both are run here, one on what the other made."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.analysis.frame import from_json, to_json
from natattn.analysis.registry import MODEL_QUESTIONS
from natattn.analysis.sections import heads, hierarchy
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


def answered(judge, subject, *names, seeds=5):
    """The verdict over the same results five times, each read back from its file."""
    results = {}
    for name in names:
        question = MODEL_QUESTIONS[name]
        content = json.dumps(to_json(question.measure(subject, SETTINGS, lambda count: None)), allow_nan=False)
        results[name] = from_json(question.result, json.loads(content))
        question.section(results[name])
    return JUDGES[judge]("study", [AnalysisResult("tiny", "text", seed, 10, results) for seed in range(seeds)])


def test_fisher(subject):
    findings, tables = answered("fisher", subject, "fisher")
    assert {finding.claim for finding in findings} == {"F1", "F3", "F4"}
    assert all(math.isfinite(finding.estimate.value) and finding.count == 5 for finding in findings)
    identity = [row for row in tables[0].rows if row[2:4] == ("F, score space", "identity")]
    assert 0 < identity[0][4].value < 1


def test_the_identity_in_score_space(subject):
    """Its cosine with F from eigenvalues, against matrices."""
    from natattn.analysis.fisher_errors import ScoreFisher
    from natattn.analysis.patterns import attention_patterns
    from natattn.analysis.questions.fisher import measure_scores

    means = []
    for pattern in attention_patterns(subject.model, subject.tokens[:4]).values():
        exact = ScoreFisher(pattern.double()).exact
        cosine = exact.diagonal(dim1=-2, dim2=-1).sum(-1) / (exact.flatten(-2).norm(dim=-1) * 32**0.5)
        means.append(float(cosine.mean()))
    assert measure_scores(subject).approximations["identity"].cosine == pytest.approx(np.mean(means))


def test_cascades(subject):
    findings, (table,) = answered("cascades", subject, "cascades")
    assert [finding.claim for finding in findings] == ["K2", "K2"]
    assert (findings[0].count, findings[1].count) == (5, 0)  # nothing is nine deviations away
    assert cell(table, "τ with a cutoff").value == pytest.approx(findings[0].estimate.value)
    assert cell(table, "τ of the plain power law").value > 1


def test_scans(subject):
    findings, tables = answered("correlation", subject, "frozen", "propagated", "sizes")
    assert findings == []
    assert {table.name: len(table.rows) for table in tables} == {
        "correlation_by_temperature": 6, "correlation_by_steps": 1, "peaks_by_context": 4,
    }  # fmt: skip
    assert all(math.isfinite(found.value) for found in tables[1].rows[0][3:])


def test_theorems(subject):
    findings, _ = answered("theorems", subject, "theorems")
    assert {finding.claim for finding in findings} == {"P1", "P2", "P3", "P4", "P5", "P6", "D3'", "D4'", "D5'"}


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
