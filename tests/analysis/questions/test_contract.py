"""The contract of every question: its result is read back from JSON as itself, renders, and lacks no field.

Questions about a model are asked of a tiny one; those about runs of synthetic runs, or the kept result is read.
"""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn.analysis.frame import from_json, to_json
from natattn.analysis.registry import MODEL_QUESTIONS, RUN_QUESTIONS
from natattn.analysis.run_set import load_runs
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.config.compose import compose, plain_values, validated
from natattn.report.page import render_analysis
from natattn.report.section import Section

# Questions that still return their section have no contract yet.
QUESTIONS = {
    name: question for name, question in {**MODEL_QUESTIONS, **RUN_QUESTIONS}.items() if question.result is not Section
}
KEPT = sorted((Path(__file__).parents[3] / "docs" / "results" / "analyses").glob("*/analysis.json"))


def settings(*arguments: str) -> AnalyzeSettings:
    fast = ["text.sequences=4", "text.batch_size=2", "temperatures.count=5", "replicas=4", "law_replicas=3"]
    composed = compose([*fast, "processes=1", "thresholds=[1.0,2.0]", *arguments], "analyze")
    return validated(plain_values(composed), AnalyzeSettings)


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.6}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    return Subject(
        name="tiny", facts={}, model=model, tokens=torch.randint(31, (8, 32)), words=[str(i) for i in range(32)],
        tokenizer=None, data=None, is_causal=True, source="",
    )  # fmt: skip


def kept(name):
    """Return the first kept result of a question; None if there is none."""
    for path in KEPT:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        if name in results:
            return from_json(QUESTIONS[name].result, results[name])
    return None


@pytest.mark.parametrize("name", QUESTIONS)
def test_results_round_trip_and_render(name, subject, make_run, tmp_path):
    question = QUESTIONS[name]
    result = None if name in MODEL_QUESTIONS and name != "hierarchy" else kept(name)
    if result is None and name in MODEL_QUESTIONS:
        result = question.measure(subject, settings(), lambda count: None)
    elif result is None:
        for seed in range(3):
            make_run(f"study/{seed}", seed=seed, initial_weights_hash=f"w{seed}")
        result = question.measure(load_runs(settings(f"runs={tmp_path}/study")), settings(), lambda count: None)
    assert type(result) is question.result
    written = json.loads(json.dumps(to_json(result), allow_nan=False))
    again = from_json(question.result, written)
    assert type(again) is question.result
    assert to_json(again) == written  # nan differs from itself
    section, expected = question.section(again), question.section(result)
    assert section.to_json() == expected.to_json()
    assert section.name == name
    assert section.findings
    assert f'id="{name}"' in render_analysis("page", {}, [section])
    for field in fields(question.result):
        with pytest.raises(ValueError, match=rf"missing fields \['{field.name}'\]"):
            from_json(question.result, {key: value for key, value in written.items() if key != field.name})


def test_every_kept_result_is_read():
    for path in KEPT:
        for name, content in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            if name in QUESTIONS:
                result = from_json(QUESTIONS[name].result, content, f"{path.parent.name}: {name}")
                assert to_json(result) == content
