"""A finished run that is trained again says whether the same came out, and if not, what differs."""

import dataclasses
import io
import json
import math
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from natattn.analysis.repetition import compare_runs
from natattn.analysis.repetition_table import print_repetition
from natattn.cli.main import main
from natattn.cli.resume import repeated_settings, resumed_settings
from natattn.config import compose as config
from natattn.errors import UserError
from natattn.training import environment
from natattn.training.environment import read_environment, write_environment
from natattn.training.run_folder import read_config
from natattn.training.train import train


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = config.settings_of(config.compose([*tiny, "size.n_layer=1"]))
    assert train(settings, folder).outcome == "finished"
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def _change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _change_metrics(folder: Path, name: str, factor: float, step: int) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["name"] == name and line["step"] == step and line["arm"] == "natural":
            value = line["value"] * factor
            line["value"] = value if math.isfinite(value) else str(value)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_repetition_is_equal_to_the_bit_and_leaves_a_run_of_its_own(finished, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"repeat={finished}"]) == 0
    said = capsys.readouterr().out
    (folder,) = Path("outputs").iterdir()
    assert folder.name.endswith("_natural_aif_seed0")
    assert f"repeat of {finished}: equal to the bit" in said
    assert "weights of 2 arms too" in said
    saved = json.loads((folder / "repeat.json").read_text())
    assert (saved["verdict"], saved["agrees"], saved["of"]) == ("bits", True, str(finished))
    assert saved["equal"] == saved["compared"] > 50
    facts, before = (json.loads((each / "run.json").read_text()) for each in (folder, finished))
    assert facts["config_hash"] == before["config_hash"]
    assert facts["run_id"] != before["run_id"]


def test_a_repetition_computes_with_the_threads_of_the_run(copied, tmp_path, capsys):
    own, then = torch.get_num_threads(), json.loads((copied / "environment.json").read_text())
    _change_json(copied / "environment.json", packages=then["packages"] | {"torch": "2.11.0"})
    _change_metrics(copied, "validation/loss", 1.001, step=3)
    folder = tmp_path / "again"
    torch.set_num_threads(then["threads"] + 1)
    try:
        assert main(["train", f"repeat={copied}", f"hydra.run.dir={folder}"]) == 1
        assert torch.get_num_threads() == then["threads"] + 1
    finally:
        torch.set_num_threads(own)
    captured = capsys.readouterr()
    said = f"computing with {then['threads']} threads, as the run did, instead of {then['threads'] + 1}"
    assert said in captured.err
    assert read_environment(folder)["threads"] == then["threads"]
    assert "DOES NOT AGREE: 1 of " in captured.out
    assert "differs first at arm natural, step 3, validation/loss" in captured.out
    assert "times what it may come to, at arm natural, step 3, validation/loss" in captured.out
    assert "packages.torch" in captured.out
    saved = json.loads((folder / "repeat.json").read_text())
    assert saved["verdict"] == "different"
    assert saved["changes"] == [{"what": "packages.torch", "then": "2.11.0", "now": torch.__version__}]


def test_a_stopped_repetition_goes_on_and_is_compared_at_its_end(finished, tmp_path, capsys):
    folder = tmp_path / "again"
    assert main(["train", f"repeat={finished}", f"hydra.run.dir={folder}", "train.max_seconds=1e-9"]) == 1
    assert not (folder / "repeat.json").exists()
    assert main(["train", f"resume={folder}", "train.max_seconds=null"]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    assert json.loads((folder / "repeat.json").read_text())["verdict"] == "bits"


def test_a_run_of_another_machines_gpu_can_be_repeated_on_the_device_that_is_asked_for(copied):
    saved = read_config(copied)
    saved["train"]["device"] = "cuda:98"
    with pytest.raises(UserError, match=r"train\.device=cuda:98"):
        repeated_settings(saved, [])
    assert repeated_settings(saved, ["train.device=cpu"]).train.device == "cpu"


@pytest.mark.slow
def test_a_run_that_was_made_longer_is_repeated_in_one_go(tiny, tmp_path, capsys):
    base = [option for option in tiny if not option.startswith("schedule")] + ["size.n_layer=1", "reference=none"]
    folder = tmp_path / "run"
    constant = ["schedule=constant", "schedule.warmup_steps=2", "train.steps=4"]
    assert main(["train", *base, *constant, f"hydra.run.dir={folder}"]) == 0
    assert main(["train", f"resume={folder}", "train.steps=7"]) == 0
    assert main(["train", f"repeat={folder}", f"hydra.run.dir={tmp_path / 'again'}"]) == 0
    assert "equal to the bit" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "repeat.json").read_text())["left_out"] > 0


@pytest.mark.parametrize(
    ("factor", "step", "name", "verdict"),
    [
        (1 + 4e-6, 3, "validation/loss", "rounding"),
        (1 + 4e-6, 0, "validation/loss", "different"),  # nothing has been trained yet that could make it grow
        (1 + 4e-5, 3, "validation/loss", "different"),
        (1 + 4e-5, 3, "attention/layer_0/entropy", "rounding"),
        (1.01, 3, "attention/layer_0/entropy", "different"),
        (float("nan"), 3, "validation/loss", "different"),
    ],
)
def test_rounding_is_told_from_another_computation_by_its_size(factor, step, name, verdict, finished, copied):
    _change_metrics(copied, name, factor, step)
    found = compare_runs(finished, copied)
    assert found.verdict == verdict
    assert (found.largest.arm, found.largest.step, found.largest.name) == ("natural", step, name)
    assert found.largest.relative == pytest.approx(abs(factor - 1), rel=1e-2) or factor != factor
    assert found.equal == found.compared - 1
    json.loads((copied / "repeat.json").read_text(), parse_constant=pytest.fail)


def test_metrics_that_one_run_lacks_and_other_weights_are_told(finished, copied):
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(line for line in lines if '"train/loss"' not in line))
    found = compare_runs(finished, copied)
    assert found.verdict == "different"
    assert {name for _, _, name in found.missing} == {"train/loss"}
    (copied / "metrics.jsonl").write_text("".join(lines))
    weights = copied / "arms" / "natural" / "model" / "model.safetensors"
    shutil.copy(copied / "arms" / "standard" / "model" / "model.safetensors", weights)
    found = compare_runs(finished, copied)
    assert 0 < found.weights["natural"] < 0.1
    assert found.weights["standard"] == 0
    assert found.verdict == "rounding"


def test_a_run_without_the_newer_records_is_compared(finished, copied):
    environment = json.loads((copied / "environment.json").read_text())
    for name in ("variables", "processor", "source"):
        del environment[name]
    (copied / "environment.json").write_text(json.dumps(environment))
    found = compare_runs(copied, Path(shutil.copytree(finished, copied.parent / "again")))
    assert not found.changes
    assert set(found.not_recorded) == {"processor", "source"}


def test_what_differs_is_written_as_it_is(finished, copied):
    """A device's name or a variable may hold what a terminal library takes for a style."""
    environment = json.loads((copied / "environment.json").read_text())
    environment["variables"] = {"ONE": "[bold]x[/red]", "TWO": ":smile:"}
    (copied / "environment.json").write_text(json.dumps(environment))
    _change_metrics(copied, "validation/loss", 1 + 4e-6, 3)
    stream = io.StringIO()
    print_repetition(compare_runs(finished, copied), stream=stream)
    assert "[bold]x[/red]" in stream.getvalue()
    assert ":smile:" in stream.getvalue()


def test_the_environments_of_all_sittings_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    for _ in range(2):
        write_environment(tmp_path, torch.device("cpu"))
    assert "earlier_sittings" not in read_environment(tmp_path)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    write_environment(tmp_path, torch.device("cpu"))
    environment = read_environment(tmp_path)
    assert environment["variables"]["MKL_CBWR"] == "AVX2"
    assert [each["variables"]["MKL_CBWR"] for each in environment["earlier_sittings"]] == ["COMPATIBLE"]


def test_earlier_sittings_that_are_none_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    (tmp_path / "environment.json").write_text(json.dumps({"earlier_sittings": 3, "python": "3"}))
    write_environment(tmp_path, torch.device("cpu"))
    assert read_environment(tmp_path)["earlier_sittings"] == [{"python": "3"}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["repeat=nowhere"], "nowhere: no such run folder"),
        (["repeat={folder}/checkpoints"], "not a run folder"),
        (
            ["repeat={folder}", "train.steps=9"],
            "train.steps=9: the run has train.steps=6; a repetition may change only",
        ),
        (["repeat={folder}", "optim=muon"], "the run has optim."),
        (["repeat={folder}", "train.stepss=9"], "train.stepss"),
        (["repeat={folder}", "resume={folder}"], "give one of them"),
        (["repeat={folder}", "train.device=cuda:7"], "train.device=cuda:7"),
        (["-m", "repeat={folder}"], "cannot be swept"),
        (["repeat={folder},{folder}"], "cannot be swept"),
        (["repeat={folder}", "hydra.run.dir={folder}"], "already holds a run"),
    ],
)
def test_what_cannot_be_repeated_is_one_line(arguments, said, finished, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *(argument.format(folder=finished) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"status": "running"}, "the run is not finished (running)"),
        ({"status": "interrupted"}, "the run is not finished (interrupted)"),
        ({"status": "time_limit"}, "train.max_seconds=null"),
        ({"status": ["running"]}, "the run is not finished (['running'])"),
        ({"data": {}}, "nothing to compare"),
        ({"data": None}, "nothing to compare"),
        ({"device": "cuda:0"}, "the run was on cuda:0: train.device=cuda:0: no CUDA devices here"),
    ],
)
def test_a_run_that_cannot_be_compared_with_is_one_line(facts, said, copied, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    _change_json(copied / "run.json", **facts)
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("device: cpu", "device: auto"))
    assert main(["train", f"repeat={copied}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_other_data_is_refused_before_training(finished, tmp_path, text_file, capsys):
    changed = tmp_path / "changed.txt"
    changed.write_text(text_file.read_text().replace("energy", "entropy"))
    folder = tmp_path / "again"
    moved = ["data=text", f"data.train={changed}", f"hydra.run.dir={folder}"]
    assert main(["train", f"repeat={finished}", *moved]) == 2
    error = capsys.readouterr().err
    assert "the data is not that of the run" in error
    assert "nothing was trained" in error
    assert error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.slow
def test_data_may_have_moved(finished, tmp_path, text_file, capsys):
    moved = tmp_path / "moved.txt"
    moved.write_text(text_file.read_text())
    options = ["data=text", f"data.train={moved}", f"hydra.run.dir={tmp_path / 'again'}"]
    assert main(["train", f"repeat={finished}", *options]) == 0
    assert "equal to the bit" in capsys.readouterr().out


@pytest.mark.parametrize("again", [resumed_settings, repeated_settings])
def test_the_tracker_may_change_in_parts_or_as_a_whole(again):
    saved = config.settings_of(config.compose([])).model_dump(mode="json")
    assert again(saved, ["tracker=online"]).tracker.mode == "online"
    assert again(saved, ["tracker=online"]).tracker.project == "natattn"
    assert again(saved, ["tracker.project=mine"]).tracker.project == "mine"
    assert again(saved, ["tracker=off"]).tracker.kind == "off"


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["aif", "natural_muon", "fisher_adam"])
def test_another_number_of_threads_is_rounding_and_another_seed_is_not(optim, tmp_path):
    options = ["size=pico", "tokenizer=byte", "data=grammar", "tracker=off", f"optim={optim}", "train.steps=20"]
    options += ["train.evaluate_every=10", "train.device=cpu", "train.max_seconds=null"]
    runs = {"one": ("1", "0"), "two": ("2", "0"), "other": ("1", "1")}
    for name, (threads, seed) in runs.items():
        command = [sys.executable, "-m", "natattn", "train", *options, f"seed={seed}"]
        subprocess.run(
            [*command, f"hydra.run.dir={tmp_path / name}"],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": threads},
        )  # fmt: skip
    found = compare_runs(tmp_path / "one", tmp_path / "two")
    assert found.verdict == "rounding", (found.worst, found.missing)
    assert {change.what: (change.then, change.now) for change in found.changes}["threads"] == (1, 2)
    assert compare_runs(tmp_path / "one", tmp_path / "other").verdict == "different"


@pytest.mark.parametrize("device", ["warp9", "meta", "cpu\x1b]0;evil\x07", 7, "cuda:98"])
def test_a_device_that_nobody_has_is_named(device, copied, capsys):
    facts = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**facts, "device": device}))
    assert main(["train", f"repeat={copied}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the run was on" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("content", [b"", b"junk\n" * 100])
def test_metrics_that_cannot_be_compared_are_refused_before_training(content, copied, tmp_path, capsys):
    (copied / "metrics.jsonl").write_bytes(content)
    assert main(["train", f"repeat={copied}", f"hydra.run.dir={tmp_path / 'again'}"]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("answers", "commit"),
    [
        ([(0, "abc\n"), (0, "")], "abc"),
        ([(0, "abc\n"), (0, " M natattn/cli/main.py\n")], "abc+changes"),
        ([(128, ""), (128, "")], None),  # such as a folder that git holds for someone else's
        ([FileNotFoundError(2, "git")], None),
        ([subprocess.TimeoutExpired("git", 5)], None),
    ],
)
def test_the_commit_is_known_only_where_git_says_it(answers, commit, tmp_path, monkeypatch):
    waiting = list(answers)

    def run(*arguments, **options):
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(returncode=answer[0], stdout=answer[1])

    monkeypatch.setattr(environment, "__file__", str(tmp_path / "natattn" / "training" / "environment.py"))
    monkeypatch.setattr(subprocess, "run", run)
    assert environment._git_commit() is None  # no checkout: git is not asked
    assert waiting == answers
    (tmp_path / ".git").mkdir()
    assert environment._git_commit() == commit


def test_where_the_system_does_not_name_its_processor_python_may(monkeypatch):
    def absent(path, **options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", absent)
    for said, name in (("arm", "arm"), ("", None)):
        monkeypatch.setattr("platform.processor", lambda said=said: said)
        assert environment.processor() == name


def test_a_package_that_is_not_installed_has_no_version():
    assert environment._version("not-a-package") is None
    assert environment._version("torch") == metadata.version("torch")


def test_a_verdict_says_what_was_not_compared(finished, copied):
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(line for line in lines if '"train/loss"' not in line))
    _change_json(copied / "environment.json", earlier_sittings=[{"python": "3"}])
    kept = copied / "arms" / "natural" / "model" / "model.safetensors"
    save_file({"other": torch.zeros(2)}, kept)
    (copied / "arms" / "standard" / "model" / "model.safetensors").unlink()
    found = compare_runs(copied, finished)
    assert found.weights == {"natural": math.inf}  # the other arm's is in one run alone
    assert any(change.what == "sittings in other environments" and change.then == 1 for change in found.changes)
    stream = io.StringIO()
    print_repetition(dataclasses.replace(found, left_out=3, not_recorded=("source", "cuda")), stream=stream)
    said = stream.getvalue()
    step, arm, name = found.missing[0]
    assert f"{len(found.missing)} metrics in one run alone, such as arm {arm}, step {step}, {name}" in said
    assert "not compared: 3 metrics of evaluations where a run had been stopped" in said
    assert "not recorded then: source, cuda" in said
    assert "nothing that is recorded differs" not in said
    stream = io.StringIO()
    print_repetition(dataclasses.replace(found, changes=()), stream=stream)
    assert "nothing that is recorded differs" in stream.getvalue()
