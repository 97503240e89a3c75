"""`train.deterministic=true`: two runs give the same bits, with every optimizer and every attention."""

import os
from pathlib import Path

import pytest
import torch

from natattn.analysis.run_comparison import compare_runs
from natattn.config.compose import groups
from natattn.errors import UserError
from natattn.training.devices import deterministic
from natattn.training.environment import read_environment
from natattn.training.run_folder import config_hash
from natattn.training.settings import compose_run
from natattn.training.train import train

QUICK = (["optim=aif"], ["optim=natural_muon"], ["model=natural_gradient", "optim=fisher_adam", "precision=bf16"])
EVERY = [
    *([f"optim={name}", "model.dropout=0.1"] for name in groups()["optim"]),
    *([f"model={name}", "optim=adamw"] for name in groups()["model"] if name != "tempered_per_head"),
    ["model=tempered_per_head", "model.attention.temperature.values=[0.5,2]", "optim=adamw"],
    *([f"model={name}", "optim=aif", "precision=bf16"] for name in ("natural", "natural_gradient", "published")),
    ["optim=natural_muon", "stabilisers=qk_clip"],
    ["optim=aif", "train.activation_checkpointing=true"],
    ["task=vision", "optim=natural_muon", "data.validation_fraction=0.3"],
]
CPU = torch.device("cpu")


def _options(tiny: list[str], options: list[str]) -> list[str]:
    own = [o for o in tiny if not o.startswith(("data", "tokenizer"))] if "task=vision" in options else tiny
    context = ["size.context=null"] if "task=vision" in options else []
    return [o for o in own if not (context and o.startswith("size.context"))] + context + options


def _two_runs(tiny: list[str], options: list[str], folder: Path) -> None:
    settings = compose_run([*_options(tiny, options), "train.deterministic=true"])
    for number, name in enumerate(("first", "second")):
        torch.manual_seed(number)  # the state of the global generator must not matter
        assert train(settings, folder / name).outcome == "finished"
    assert read_environment(folder / "first")["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()
    found = compare_runs(folder / "first", folder / "second")
    assert found.verdict == "identical"
    assert found.compared > 20
    assert len(found.weights) == 2


@pytest.mark.parametrize("options", QUICK, ids=" ".join)
def test_the_same_bits_twice(options, tiny, tmp_path):
    _two_runs(tiny, [*options, "train.steps=3"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", EVERY, ids=" ".join)
def test_the_same_bits_twice_with_everything(options, threads, tiny, tmp_path):
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _two_runs(tiny, options, tmp_path)
    finally:
        torch.set_num_threads(own)


def test_published_runs_keep_their_hash():
    saved = compose_run([]).model_dump(mode="json")
    chosen = compose_run(["train.deterministic=true"]).model_dump(mode="json")
    before = {**saved, "train": {key: value for key, value in saved["train"].items() if key != "deterministic"}}
    assert config_hash(saved) == config_hash(before)
    assert config_hash(chosen) != config_hash(saved)


@pytest.mark.parametrize("error", [None, ValueError])
def test_afterwards_all_is_as_it_was(error, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(error) if error else deterministic(True, CPU), deterministic(True, CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
        if error:
            raise error
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic


def test_what_has_no_deterministic_algorithm_is_one_line():
    with (
        pytest.raises(
            UserError, match=r"train.deterministic=true: not possible on cpu: put_.*; valid: false"
        ) as caught,
        deterministic(True, CPU),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert "\n" not in str(caught.value)
    with deterministic(False, CPU):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


@pytest.mark.parametrize(
    ("value", "initialised", "said"),
    [(None, False, None), (":16:8", True, None), (None, True, "CUDA was used before"), (":0:0", False, ":0:0")],
)
def test_cublas_is_told_in_time(value, initialised, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "to be restored")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG") if value is None else monkeypatch.setenv(
        "CUBLAS_WORKSPACE_CONFIG", value
    )
    if said:
        with pytest.raises(UserError, match=said), deterministic(True, torch.device("cuda")):
            pass
    else:
        with deterministic(True, torch.device("cuda")):
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (value or ":4096:8")
