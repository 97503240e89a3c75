"""On a GPU: the same numbers as on the CPU, no waiting inside a step, exact resumption. Skipped where there is none."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from run_metrics import lines

from natattn.analysis.run_comparison import compare_runs
from natattn.cli.main import main
from natattn.config.compose import groups
from natattn.tasks import BatchSlice
from natattn.tasks.base import to_device
from natattn.training.arm import Arm
from natattn.training.build import build_arms, open_task
from natattn.training.settings import compose_run
from natattn.training.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used, by whichever test
STEPS = 4
TASKS = {
    "vision": ["task=vision", "data.validation_fraction=0.3"],
    "multimodal": ["task=multimodal", "data.train_pairs=64", "tokenizer=byte", "data.validation_galleries=1"],
}
SMALL = ["size.n_layer=2", "size.n_embd=16", "size.n_head=2", "tracker=off", "train.batch_size=4"]


def _candidate(overrides: list[str], device: str) -> Arm:
    settings = compose_run([*overrides, f"train.device={device}"])
    return build_arms(settings, open_task(settings, progress=False))[-1]


def _losses(arm: Arm, steps: int = STEPS) -> list[float]:
    losses = []
    for step in range(steps):
        batch = to_device(arm.task.batch(step, BatchSlice()), arm.device)
        losses.append(float(arm.train_step([batch], step, 1.0).loss))
    return losses


@pytest.mark.parametrize("optim", groups()["optim"])
def test_every_optimizer_trains_as_on_the_cpu(optim, tiny):
    options = [*tiny, "reference=none", "precision=fp64", f"optim={optim}"]
    on_cpu, on_gpu = (_losses(_candidate(options, device)) for device in ("cpu", "cuda"))
    # Newton–Schulz iterates in bfloat16, which the two round differently.
    assert on_gpu == pytest.approx(on_cpu, rel=2e-2 if "muon" in optim or "soap" in optim else 1e-6)
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-9)


@pytest.mark.parametrize("model", ["natural", "natural_gradient", "tempered", "standard"])
def test_every_attention_trains_as_on_the_cpu(model, tiny):
    options = [*tiny, "reference=none", f"model={model}", "optim=adamw", "precision=fp64"]
    on_cpu, on_gpu = (_losses(_candidate(options, device)) for device in ("cpu", "cuda"))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_as_on_the_cpu(task):
    options = [*TASKS[task], *SMALL, "reference=none", "optim=aif", "precision=fp64"]
    on_cpu, on_gpu = (_losses(_candidate(options, device)) for device in ("cpu", "cuda"))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5)


@pytest.mark.parametrize("optim", ["adamw", "aif", "aif_update", "muon", "natural_muon", "fisher_muon", "fisher_adam"])
def test_a_step_does_not_wait_for_the_gpu(optim, tiny):
    arm = _candidate([*tiny, "reference=none", f"optim={optim}"], "cuda")
    _losses(arm, 12)  # past the first captures and refreshes
    batches = [to_device(arm.task.batch(step, BatchSlice()), arm.device) for step in range(12, 32)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step, batch in enumerate(batches, start=12):
                arm.train_step([batch], step, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    assert not waits, sorted(set(waits))


@pytest.mark.parametrize("optim", ["aif", "natural_muon"])
def test_a_run_goes_on_exactly(optim, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*tiny, f"optim={optim}", "train.device=cuda"]
    assert main(["train", *options, "hydra.run.dir=whole"]) == 0
    assert main(["train", *options, "hydra.run.dir=cut", "train.max_seconds=1e-9"]) == 0
    assert main(["train", "resume=cut", "train.max_seconds=null"]) == 0
    assert _validation(tmp_path / "cut") == pytest.approx(_validation(tmp_path / "whole"), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        *([f"optim={name}"] for name in groups()["optim"]),
        *([f"model={name}", "optim=adamw"] for name in ("natural_gradient", "tempered", "published")),
        ["optim=aif", "precision=bf16"],
        ["optim=natural_muon", "precision=bf16", "model.dropout=0.1"],
        ["optim=aif", "train.activation_checkpointing=true", "size.n_embd=64", "size.context=64"],
    ],
    ids=" ".join,
)
def test_a_deterministic_run_has_the_same_bits_twice(options, tiny, tmp_path):
    chosen = ["train.device=cuda", "train.deterministic=true", "reference=none"]
    settings = compose_run([*tiny, *options, *chosen])
    for name in ("first", "second"):
        assert train(settings, tmp_path / name).outcome == "finished"
    assert compare_runs(tmp_path / "first", tmp_path / "second").verdict == "identical"


def _validation(folder: Path) -> list[float]:
    records = lines(folder)
    return [each["value"] for each in records if each["name"] == "validation/loss"]
