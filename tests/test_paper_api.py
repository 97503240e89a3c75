"""The paper's Python API: the seed document's example, the lazy public names, and the errors."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from run_metrics import lines

import natattn
from natattn.published import train_models as paper

EXAMPLE = """
from transformers import GPT2Config
from natattn import GPT2NaturalAttentionBlock, AttentionInformedOptimizer, train_models

# Configuration
config_dict = {
    'max_length': 32,
    'batch_size': 4,
    'n_embd': 64,
    'n_layer': 2,
    'n_head': 2,
    'learning_rate': 1e-3,
    'epochs': 10,
    'save_every': 2
}

# Initialize models and train
standard_model, natural_model = train_models(config_dict)
"""
TINY = {"max_length": 8, "n_embd": 16, "epochs": 2, "save_every": 1}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "some text.txt"
    path.write_text("\n\n".join(f"the cat number {n} sat on mat {n % 7}." for n in range(60)), encoding="utf-8")
    return path


def test_the_seeds_example_runs_as_it_stands(tmp_path, monkeypatch):
    """On a small stand-in for the standard library, so that ten epochs take seconds."""
    library = tmp_path / "lib"
    library.mkdir()
    for number in range(300):
        (library / f"m{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n", encoding="utf-8")
    monkeypatch.setattr("natattn.data.text.stdlib.sysconfig.get_path", lambda _: str(library))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(EXAMPLE, names)
    standard, natural = names["standard_model"], names["natural_model"]
    assert not standard.training
    assert not natural.training
    assert (natural.config.n_embd, natural.config.n_layer, natural.config.n_head) == (64, 2, 2)
    assert (standard.config._attn_implementation, natural.config._attn_implementation) == ("sdpa", "natural")
    (folder,) = (tmp_path / "outputs").iterdir()
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "finished"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["train"]["steps"] == facts["steps"] >= 10


def test_trains_both_models_for_the_epochs_asked(text, tmp_path):
    standard, natural = natattn.train_models(TINY, text, folder=tmp_path / "run")
    records = lines(tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    train = settings["train"]
    assert (train["sampling"], train["batch_size"]) == ("epochs", 4)
    assert train["checkpoint_every"] == pytest.approx(train["steps"] / 2, abs=1)
    losses = {
        arm: [r["value"] for r in records if r["arm"] == arm and r["name"] == "validation/loss"]
        for arm in ("standard", "natural")
    }
    assert all(values[-1] < values[0] for values in losses.values())
    assert len(losses["natural"]) == 3  # before the first epoch and after each
    for optim in (settings["optim"], settings["reference"]):
        assert optim["learning_rate"] == 1e-3
        assert set(optim["learning_rates"].values()) <= {1e-3}
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert standard(tokens).logits.shape == natural(tokens).logits.shape
    assert sorted(path.name for path in (tmp_path / "run" / "arms").iterdir()) == ["natural", "standard"]


def test_bounds_by_steps_and_by_seconds(text, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        natattn.train_models(TINY, text, folder=tmp_path / "steps", max_steps=3, max_seconds=None)
    assert json.loads((tmp_path / "steps" / "run.json").read_text())["steps"] == 3
    with pytest.warns(UserWarning, match="max_seconds=1e-06"):
        natattn.train_models(TINY, text, folder=tmp_path / "seconds", max_seconds=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 2}, "n_heads: unknown key; did you mean n_head?.*max_length"),
        ({"max_length": 1}, "max_length=1.*greater than or equal to 2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"n_layer": "two"}, "n_layer=two.*valid: a whole number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0.*greater than 0"),
        ({"epochs": 0}, "epochs=0"),
        ({"save_every": 0.5}, "save_every=0.5"),
        ({"n_embd": 15}, "n_head=2: does not divide size.n_embd=15"),
    ],
)
def test_bad_keys_and_values_are_named(changes, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        natattn.train_models({**TINY, **changes}, text, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_arguments_are_named(text, tmp_path):
    with pytest.raises(ValueError, match=r"data=stdlab: .*did you mean stdlib\?.*wikitext2"):
        natattn.train_models(TINY, "stdlab")
    with pytest.raises(ValueError, match="max_steps=0"):
        natattn.train_models(TINY, text, max_steps=0)
    with pytest.raises(ValueError, match="max_seconds=0"):
        natattn.train_models(TINY, text, max_seconds=0)
    run = tmp_path / "run"
    natattn.train_models(TINY, text, folder=run, max_steps=1)
    with pytest.raises(ValueError, match="already holds a run"):
        natattn.train_models(TINY, text, folder=run, max_steps=1)


def test_defaults_are_the_seeds():
    names: dict[str, object] = {}
    exec(EXAMPLE.partition("# Initialize")[0], names)
    assert names["config_dict"] == paper.DEFAULTS


def test_public_names_are_there_and_nothing_is_imported_for_them():
    assert sorted(natattn.__all__) == [
        "AttentionInformedOptimizer",
        "FisherMuon",
        "GPT2NaturalAttentionBlock",
        "NaturalAttention",
        "NaturalMuon",
        "attention",
        "train_models",
    ]
    assert set(natattn.__all__) <= set(dir(natattn))
    for name in natattn.__all__:
        assert getattr(natattn, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'NaturalAtention'"):
        natattn.NaturalAtention  # noqa: B018
    code = (
        "import sys, natattn.cli.main, natattn.attention; natattn.cli.main.main(['--help']); "
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("False\n")


def test_register_makes_natural_attention_known_to_transformers():
    code = (
        "import natattn\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "natattn.attention.register()\n"
        "sizes = {'n_layer': 1, 'n_embd': 4, 'n_head': 1, 'vocab_size': 5}\n"
        "model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation='natural'))\n"
        "print(model.config._attn_implementation)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "natural\n"
