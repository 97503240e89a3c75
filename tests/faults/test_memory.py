"""Memory that does not suffice: one line that names settings which need less, and a run that goes on."""

from pathlib import Path

import pytest
import torch
from forking import ForkServer
from run_metrics import records
from wholeness import Undisturbed

from natattn.cli.main import main
from natattn.training.arm import Arm
from natattn.training.resource_errors import advice_for_evaluation, advice_for_step, is_out_of_memory
from natattn.training.settings import TrainSettings

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB.")
CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3145728 bytes. Error code 12")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CUDA, True),
        (CPU, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=repr,
)
def test_what_is_out_of_memory(error: Exception, expected: bool):
    assert is_out_of_memory(error) is expected


def settings(**changes: object) -> TrainSettings:
    values: dict = {
        "steps": 1, "batch_size": 12, "accumulation_steps": 1, "sampling": "random", "clip_norm": None,
        "evaluate_every": 1, "evaluation_batch_size": 32, "checkpoint_every": 1, "keep_checkpoints": 1, "log_every": 1,
        "max_seconds": None, "compile": False, "device": "cpu",
    }  # fmt: skip
    return TrainSettings(**(values | changes))


class _Model:
    supports_gradient_checkpointing = True


@pytest.mark.parametrize(
    ("changes", "divisible", "resume_with", "anew"),
    [
        ({}, True, "train.activation_checkpointing=true", "train.batch_size=12 train.accumulation_steps=2 "),
        (
            {"accumulation_steps": 4},
            True,
            "train.activation_checkpointing=true",
            "train.batch_size=12 train.accumulation_steps=6 ",
        ),
        ({"activation_checkpointing": True, "accumulation_steps": 12}, True, "", "a smaller size="),
        ({}, False, "train.activation_checkpointing=true", "train.batch_size=6 "),
    ],
)
def test_the_settings_that_need_less(changes: dict, divisible: bool, resume_with: str, anew: str):
    found = advice_for_step(settings(**changes), [_Model()], divisible=divisible)
    assert found["resume_with"] == resume_with
    assert found["anew"].startswith(anew)
    assert advice_for_step(settings(), [object()], divisible=True)["resume_with"] == ""
    assert advice_for_evaluation(settings()) == {"anew": "train.evaluation_batch_size=16"}


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
def test_a_step_without_memory_is_one_line_and_the_run_goes_on(
    error: Exception,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main(["train", *tiny, f"hydra.run.dir={whole}"]) == 0
    train_step = Arm.train_step

    def fails(arm: Arm, slices: list, step: int, factor: float):
        if (arm.name, step) == ("natural", 3):
            raise error
        return train_step(arm, slices, step, factor)

    monkeypatch.setattr(Arm, "train_step", fails)
    capsys.readouterr()
    assert main(["train", *tiny, f"hydra.run.dir={folder}"]) == 1
    more = "2.00 GiB" if error is CUDA else "3.0 MiB"
    assert capsys.readouterr().err == (
        f"natattn: step 3 of arm natural: out of memory (for {more} more); resume with natattn train resume={folder} "
        "train.activation_checkpointing=true; or start a new run with train.batch_size=4 train.accumulation_steps=2 "
        "(the same batch, 2 at a time)\n"
    )
    monkeypatch.undo()
    assert main(["train", f"resume={folder}", "train.activation_checkpointing=true"]) == 0
    assert records(folder) == records(whole)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["train.batch_size=40000"], "step 0 of arm standard: out of memory (for "),
        (
            ["train.evaluation_batch_size=40000", "data.train={long}", "data.validation_fraction=0.45"],
            "evaluation of arm standard at step 0: ",
        ),
        (["size.n_embd=8192", "size.n_inner=32768"], "size=nano: out of memory (for "),
    ],
    ids=["step", "evaluation", "model"],
)
@pytest.mark.slow
def test_real_memory_ends(
    options: list[str],
    where: str,
    server: ForkServer,
    small: list[str],
    undisturbed: Undisturbed,
    text_file: Path,
    tmp_path: Path,
):
    fault = {"kind": "little_memory", "more": 250 << 20}
    cache = str(undisturbed.cache)
    long = tmp_path / "long.txt"
    long.write_text(text_file.read_text() * 250)  # 3 MB
    arguments = ["train", *small, *(each.format(long=long) for each in options), "hydra.run.dir=run"]
    assert server.run(arguments, log=tmp_path / "log", cwd=tmp_path, fault=fault, NATATTN_CACHE=cache) == 1
    said = (tmp_path / "log" / "stderr.txt").read_text()
    assert said.startswith(f"natattn: {where}"), said
    assert said.count("\n") == 1
    assert "start" in said
