"""`seeds=N` on the command line: every seed's folder is that of its own run, and each goes on by itself."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from run_metrics import records
from safetensors.torch import load_file

from natattn.cli.main import main
from natattn.stacked.console import SeedMeans
from natattn.tracking import Record
from natattn.tracking.console import Console
from natattn.training.run import Run

EVEN = ["schedule=constant", "schedule.warmup_steps=1"]


def _train(tiny, folder: Path, *overrides: str) -> int:
    return main(["train", *_base(tiny, overrides), *overrides, f"hydra.run.dir={folder}"])


def _base(tiny, overrides) -> list[str]:
    """Without what belongs to another schedule, or to a model of another size."""
    dropped = ["schedule."] * ("schedule=constant" in overrides)
    dropped += ["size.", "tokenizer="] * ("init=pretrained" in overrides)
    return [each for each in tiny if not each.startswith(tuple(dropped))]


def _assert_alike(first: Path, second: Path, tolerance: float = 2e-3) -> None:
    """Two runs of one seed: the same records, the same facts but for the clock, and nearly the same weights."""
    for one, other in zip(records(first), records(second), strict=True):
        assert one[:3] == other[:3]
        assert one[3] == pytest.approx(other[3], abs=tolerance, rel=tolerance), one
    facts = [json.loads((folder / "run.json").read_text()) for folder in (first, second)]
    assert facts[0].keys() - facts[1].keys() <= {"replicas"}
    for key in facts[1].keys() - {"run_id", "group"}:
        assert facts[0][key] == facts[1][key], key
    models = [sorted(folder.glob("arms/*/model/model.safetensors")) for folder in (first, second)]
    assert len(models[0]) == len(models[1]) == 2
    for one, other in zip(*models, strict=True):
        weights, others = load_file(one), load_file(other)
        assert weights.keys() == others.keys()
        for name in weights:
            torch.testing.assert_close(weights[name], others[name], atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "run"
    assert _train(tiny, folder, "optim=fisher_adam", "seeds=3", "seed=4") == 0
    return folder


@pytest.mark.parametrize("seed", [4, 6])
def test_a_seed_of_several_is_the_run_of_that_seed(seed, tiny, tmp_path, together):
    assert sorted(path.name for path in together.glob("seed*")) == ["seed4", "seed5", "seed6"]
    assert not (together / "run.lock").exists()
    assert _train(tiny, tmp_path / "alone", "optim=fisher_adam", f"seed={seed}") == 0
    member = together / f"seed{seed}"
    _assert_alike(member, tmp_path / "alone")
    files = [{path.relative_to(each) for path in each.rglob("*")} for each in (member, tmp_path / "alone")]
    assert files[0] == files[1]
    config = yaml.safe_load((member / "config.yaml").read_text())
    assert (config["seed"], config["seeds"]) == (seed, None)


def test_the_seeds_differ_and_are_reported_as_runs_of_one_setting(together, capsys):
    losses = {records(together / f"seed{seed}")[0][3] for seed in (4, 5, 6)}
    assert len(losses) == 3
    assert main(["report", str(together)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "fisher_adam" in line]
    assert len(rows) == 1
    assert rows[0][rows[0].index("standard") + 1] == "3"


def test_one_seed_goes_on_by_itself(tiny, tmp_path):
    options = [*EVEN, "optim=natural_muon", "model=tempered_inverse_sqrt"]
    assert _train(tiny, tmp_path / "together", *options, "seeds=2", "train.steps=4") == 0
    assert _train(tiny, tmp_path / "alone", *options, "seed=1", "train.steps=4") == 0
    for folder in (tmp_path / "together" / "seed1", tmp_path / "alone"):
        assert main(["train", f"resume={folder}", "train.steps=8"]) == 0
    _assert_alike(tmp_path / "together" / "seed1", tmp_path / "alone")
    assert json.loads((tmp_path / "together" / "seed0" / "run.json").read_text())["steps"] == 4


def test_a_signal_stops_all_seeds_at_one_step_and_each_is_resumed(tiny, tmp_path):
    options = ["seeds=2", "train.steps=4000", "train.evaluate_every=2000", "train.checkpoint_every=2000", *EVEN]
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "natattn", "train", *_base(tiny, options), *options, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = folder / "seed1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"step": 20' in metrics.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"resume={folder}/seedN for each of its seeds N" in said
    steps = []
    for seed in (0, 1):
        own = folder / f"seed{seed}"
        (checkpoint,) = (path for path in (own / "checkpoints").glob("step-*"))
        steps.append(int(checkpoint.name.removeprefix("step-")))
        assert json.loads((own / "run.json").read_text())["status"] == "interrupted"
        assert main(["train", f"resume={own}", f"train.steps={steps[-1] + 3}"]) == 0
        assert json.loads((own / "run.json").read_text())["status"] == "finished"
        assert max(record[0] for record in records(own)) == steps[-1] + 3
    assert steps[0] == steps[1] > 0


def test_a_seed_that_diverges_does_so_alone(tiny, tmp_path, monkeypatch):
    prepare_step = Run.prepare_step

    def poisoned(self, arm):
        prepare_step(self, arm)
        if self.folder.name == "seed1" and arm.name == "natural" and self.progress.step == 1:
            with torch.no_grad():
                arm.model.transformer.ln_f.weight.fill_(math.nan)

    assert _train(tiny, tmp_path / "whole", "seeds=3") == 0
    monkeypatch.setattr(Run, "prepare_step", poisoned)
    assert _train(tiny, tmp_path / "poisoned", "seeds=3") == 0
    for seed in (0, 2):
        _assert_alike(tmp_path / "poisoned" / f"seed{seed}", tmp_path / "whole" / f"seed{seed}", 1e-5)
    facts = json.loads((tmp_path / "poisoned" / "seed1" / "run.json").read_text())
    assert facts["arms"]["natural"]["status"] == "diverged"
    assert facts["arms"]["natural"]["cause"] == "the training loss is nan at step 1"
    assert facts["arms"]["standard"]["status"] == "finished"
    standard = [
        [record for record in records(tmp_path / name / "seed1") if record[1] == "standard"]
        for name in ("poisoned", "whole")
    ]
    assert [record[3] for record in standard[0]] == pytest.approx([record[3] for record in standard[1]], abs=1e-5)


def test_the_time_limit_stops_all_seeds_at_one_step(tiny, tmp_path):
    options = ["seeds=2", "train.steps=100000", "train.max_seconds=2", "train.evaluate_every=100000"]
    assert _train(tiny, tmp_path / "run", *options) == 0
    last = {max(record[0] for record in records(tmp_path / "run" / f"seed{seed}")) for seed in (0, 1)}
    assert len(last) == 1
    for seed in (0, 1):
        assert json.loads((tmp_path / "run" / f"seed{seed}" / "run.json").read_text())["status"] == "time_limit"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seeds=0"], "seeds=0: "),
        (["seeds=2", "model.dropout=0.1"], "seeds=2: model.dropout=0.1: "),
        (["seeds=2", "model=published"], "seeds=2: model=published: "),
        (["seeds=2", "train.activation_checkpointing=true"], "seeds=2: train.activation_checkpointing=true: "),
        (["seeds=2", "train.compile=true"], "seeds=2: train.compile=true: "),
        (["seeds=2", f"seed={2**63 - 1}"], "seeds=2: seed="),
        (["seeds=2", "-m", "seed=0,1"], "seeds=2: the sweep is over seed already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_seeds_cannot_do_is_refused_in_one_line(overrides, said, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *tiny, *overrides]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"natattn: {said}")
    assert not list(tmp_path.rglob("run.json"))


def test_several_seeds_are_neither_resumed_together_nor_trained_over_others(together, tiny, capsys):
    assert main(["train", f"resume={together / 'seed4'}", "seeds=2"]) == 2
    assert "seeds=2: cannot be resumed together" in capsys.readouterr().err
    assert main(["train", f"resume={together}"]) == 2
    assert "name one of its runs: seed4, seed5, seed6" in capsys.readouterr().err
    assert _train(tiny, together, "seeds=1", "seed=5") == 2
    assert f"{together / 'seed5'}: already holds a run" in capsys.readouterr().err


def test_a_pretrained_model_of_another_kind_is_refused(tiny, tmp_path, capsys, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    from natattn.data.text.tokenizers import ByteTokenizer

    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=257, max_position_embeddings=16, **sizes)).save_pretrained("llama")
    ByteTokenizer().save(tmp_path / "llama")
    options = ["init=pretrained", "init.path=llama", "tokenizer=pretrained", "size=pretrained", "size.context=16"]
    assert _train(tiny, Path("run"), *options, "seeds=2", "reference=none", "optim=adamw") == 2
    assert "seeds: LlamaForCausalLM cannot be stacked" in capsys.readouterr().err
    assert not list(tmp_path.rglob("run.json"))


def test_the_console_shows_means_of_what_is_finite(capsys):
    facts = {"reference": None, "candidate": "natural", "arms": {"natural": {}}}
    with Console(facts, total_steps=4) as console:
        means = SeedMeans(console, 2)
        with means, means:
            for value in (1.0, 2.0):
                means.log([Record(0, "natural", "validation/loss", value, 0.0)])
            means.show()
            means.log([Record(2, "natural", "validation/loss", 1.0, 1.0), Record(2, "natural", "diverged", 2, 1.0)])
            means.log([Record(2, "natural", "validation/loss", math.nan, 1.0)])
            means.show()
            means.log([Record(4, "natural", "diverged", 4, 2.0), Record(4, "natural", "validation/loss", 3.0, 2.0)])
    lines = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["step 0/4", "natural 1.5000"],
        ["step 2/4", "natural 1.0000"],
        ["step 4/4", "natural diverged at step 4"],
    ]
