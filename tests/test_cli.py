"""The command line by running it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_metrics import lines

from natattn.cli.main import main
from natattn.config.compose import train_groups
from natattn.data import evaluation_batches, prepare
from natattn.data.text.blocks import IGNORED_LABEL
from natattn.training.settings import compose_run

HEAVY = ("torch", "transformers", "datasets", "wandb", "hydra", "pydantic", "numpy")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["-h"]])
def test_help_and_version_import_nothing_heavy(arguments):
    code = (
        "import sys; from natattn.cli.main import main; code = main(sys.argv[1:]);"
        f"loaded = [m for m in {HEAVY} if m in sys.modules]; assert not loaded, loaded; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "natattn" in result.stdout


def test_train_help_lists_every_group_and_option_with_a_line(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for group, options in train_groups().items():
        assert re.search(rf"^  {group}$", text, re.MULTILINE)
        for option in options:
            assert re.search(rf"^   [ *] {option} +\S.{{8,}}$", text, re.MULTILINE), option
    assert "* natural" in text
    assert "train:" in text
    assert "batch_size: 4" in text


@pytest.mark.parametrize("command", ["report", "sample"])
def test_other_commands_have_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: natattn {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean train?"),
        (["--nonsense"], "valid: train"),
        (["report", "nowhere"], "nowhere"),
        (["sample", "run=nowhere"], "nowhere"),
        (["sample", "promt=x"], "did you mean prompt?"),
        (["sample", "run=nowhere", "tokens=0"], "tokens=0"),
        (["train", "resume=nowhere"], "no such run folder"),
        (["train", "-m", "seed=range(3,1)"], "there is no job"),
        (["train", "--package", "x"], "--package"),
        (["sample"], "run: missing. Use run=FOLDER"),
        (["train", "optim=adamw,aif"], "add -m"),
        (["train", "--nonsense"], "--nonsense"),
        (["train", "--experimental-rerun", "x"], "unpickle"),
        (["train", "--cfg", "job", "optim=nope"], "no such option"),
        (["train", "--cfg", "job", "train.steps=-1"], "train.steps=-1"),
        (["train", "--cfg", "job", "train.device=cuda:256"], "train.device=cuda:256"),
        (["train", "--config-name=foo"], "not supported"),
        (["train", "data=text", "data.train=n\udcff.txt"], "UTF-8"),
        (["train", "model.name=a/b"], "model.name=a/b"),
        (["train", "optim.learning_rates.hidden=-1"], "optim.learning_rates.hidden=-1"),
        (["train", "schedule=constant", "train.steps=50"], "schedule.warmup_steps=100"),
    ],
)
def test_wrong_commands_end_with_one_line_and_exit_code_2(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


WRONG_RUNS = {
    "unknown key": (["train.stepss=3"], "train.stepss"),
    "context longer than the data": (["size.context=100000"], "size.context=100000"),
    "context longer than the rows": (["packing=lines", "packing.line_tokens=5"], "6 tokens in a row"),
    "vocabulary mismatch": (["init=pretrained", "init.path={model}", "tokenizer=bpe"], "tokenizer"),
    "no such data": (["data.train=missing.txt"], "missing.txt"),
    "second job of a sweep": (["-m", "train.steps=2,0"], "train.steps=0"),
    "no such pretrained folder": (["init=pretrained", "init.path=missing"], "missing"),
    "stabilisers of published blocks": (["model=published", "stabilisers=qk_norm"], "stabilisers.qk_norm=True"),
    "two bounds at once": (["stabilisers=qk_clip", "stabilisers.qk_norm=true"], "give one of them"),
    "a temperature under a norm": (["model=tempered", "stabilisers=qk_norm"], "temperature cannot be folded"),
    "a direction for matrices on vectors": (
        ["optim=muon", "+optim.directions.vector=${{optim.directions.hidden}}"],
        "this direction is for matrices",
    ),
    "inputs of an embedding": (
        ["optim=newton_muon", "+optim.directions.embedding=${{optim.directions.hidden}}"],
        "no inputs to observe",
    ),
    "heads of what has none": (
        ["optim=natural_muon", "optim.directions.hidden.per_head=true"],
        "are not made of heads",
    ),
    "folder is a file": (["hydra.run.dir=/dev/null/run"], "/dev/null/run"),
    "pretrained of another size": (["init=pretrained", "init.path={model}", "size=pico"], "size.n_layer=2"),
}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *tiny, "size.n_layer=1", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize(("overrides", "said"), WRONG_RUNS.values(), ids=WRONG_RUNS.keys())
def test_wrong_runs_leave_no_folder_behind(overrides, said, tiny, finished, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overrides = [override.format(model=finished / "arms" / "natural" / "model") for override in overrides]
    base = [o for o in tiny if not o.startswith(("size.", "tokenizer="))] if "init=pretrained" in overrides else tiny
    capsys.readouterr()
    assert main(["train", *base, *overrides]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert error.strip().count("\n") == 0
    assert not list(tmp_path.rglob("*")), list(tmp_path.rglob("*"))


def test_a_run_leaves_what_it_promises(finished):
    for name in ("config.yaml", "environment.json", "run.json", "metrics.jsonl", "curves.png"):
        assert (finished / name).stat().st_size > 0, name
    facts = json.loads((finished / "run.json").read_text())
    assert facts["status"] == "finished"
    assert (finished / "config.yaml").read_text().startswith(f"# sha256 {facts['config_hash']}")
    names = {line["name"] for line in lines(finished)}
    assert {"validation/loss", "train/loss", "attention/layer_0/entropy", "optim/layer_0/energy_factor"} <= names
    assert not (finished / "run.lock").exists()


def test_arms_share_data_and_the_first_evaluation(finished):
    records = lines(finished)
    first = {r["arm"]: r["value"] for r in records if r["name"] == "validation/loss" and r["step"] == 0}
    assert first["standard"] == pytest.approx(first["natural"], abs=1e-5)


def test_exported_model_loads_gives_the_same_logits_and_generates(finished):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "arms" / "natural" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trained = load_file(max(finished.glob("checkpoints/step-*")) / "natural.model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[name]), name
    tokens = torch.tensor([tokenizer.encode("the gradient")])
    natural = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="natural")
    torch.testing.assert_close(model(tokens).logits, natural(tokens).logits, atol=1e-5, rtol=0)
    assert model.generate(tokens, max_new_tokens=4, do_sample=False).shape[1] > tokens.shape[1]


def test_sample_writes_text_and_is_seeded(finished, capsys):
    capsys.readouterr()
    texts = []
    for seed in (1, 1, 2):
        assert main(["sample", f"run={finished}", "prompt=the ", "tokens=8", f"seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("the ")
    assert texts[0] != texts[2]
    assert main(["sample", f"run={finished}", "arm=nobody"]) == 2
    assert "valid: natural, standard" in capsys.readouterr().err


def test_report_prints_the_table_again(finished, capsys):
    assert main(["report", str(finished)]) == 0
    text = capsys.readouterr().out
    assert "standard" in text
    assert "natural" in text


def test_multirun_gives_a_folder_and_a_wandb_run_each(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = [o for o in tiny if o != "tracker=off"]
    assert main(["train", "-m", *overrides, "optim=adamw,aif", "seed=0,1"]) == 0
    runs = sorted(path.parent for path in tmp_path.glob("outputs/*_sweep/*/config.yaml"))
    assert len(runs) == 4
    assert len(list(tmp_path.glob("outputs/*_sweep/*/wandb/offline-run-*"))) == 4
    assert not any(re.search(r"[~=(,]", str(path.relative_to(tmp_path))) for path in runs)
    capsys.readouterr()
    assert main(["report", "outputs"]) == 0
    assert "±" in capsys.readouterr().out


def test_a_failing_job_does_not_end_the_sweep(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *tiny, "size.context=100000,16"]) == 2
    assert len(list(tmp_path.glob("outputs/*_sweep/*/config.yaml"))) == 1
    assert len(list(tmp_path.glob("outputs/*_sweep/*_seed0"))) == 1
    assert "size.context=100000" in capsys.readouterr().err


def test_a_diverging_arm_stops_and_the_other_goes_on(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    wild = ["optim.learning_rate=1e30", "train.clip_norm=null", "train.steps=12"]
    assert main(["train", *tiny, *wild, f"hydra.run.dir={folder}"]) == 0
    facts = json.loads((folder / "run.json").read_text())
    assert facts["arms"]["natural"]["status"] == "diverged"
    assert "at step" in facts["arms"]["natural"]["cause"]
    assert facts["arms"]["standard"]["status"] == "finished"
    records = lines(folder)
    assert max(r["step"] for r in records if r["arm"] == "standard") == 12
    assert any(r["name"] == "diverged" and r["arm"] == "natural" for r in records)
    assert not (folder / "arms" / "natural").exists()
    assert "diverged" in capsys.readouterr().out


def test_an_exported_tempered_model_computes_the_same_without_its_temperature(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "run"
    tempered = ["model=tempered_per_head", "model.attention.temperature.values=[0.5,3.0]"]
    assert main(["train", *tiny, *tempered, f"hydra.run.dir={folder}"]) == 0
    records = lines(folder)
    final = [r["value"] for r in records if r["name"] == "validation/loss" and r["arm"] == "tempered_per_head"][-1]
    model = AutoModelForCausalLM.from_pretrained(folder / "arms" / "tempered_per_head" / "model")
    settings = compose_run(tiny)
    corpus = prepare(settings.data, settings.tokenizer, progress=False)
    total = count = 0.0
    for inputs, labels in evaluation_batches(corpus.validation, batch_size=8, context=16):
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs)).logits.flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).flatten(), reduction="sum"))
        count += int((labels != IGNORED_LABEL).sum())
    assert total / count == pytest.approx(final, abs=1e-4)


def test_a_model_with_stabilisers_samples_and_goes_on_only_with_them(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *tiny, "stabilisers=qk_norm", "reference=none", f"hydra.run.dir={folder}"]) == 0
    model = folder / "arms" / "natural" / "model"
    assert json.loads((model / "config.json").read_text())["natattn_stabilisers"]["query_key_norm"] is True
    assert main(["sample", f"run={folder}", "prompt=ab", "tokens=3"]) == 0
    base = [o for o in tiny if not o.startswith(("size.", "tokenizer="))]
    again = ["train", *base, "init=pretrained", f"init.path={model}"]
    capsys.readouterr()
    assert main([*again, f"hydra.run.dir={tmp_path / 'refused'}"]) == 2
    assert "valid: stabilisers.qk_norm=true stabilisers.softcap=null" in capsys.readouterr().err
    assert main([*again, "stabilisers=qk_norm", f"hydra.run.dir={tmp_path / 'more'}"]) == 0


def test_fine_tuning_starts_both_arms_from_the_pretrained_weights(finished, tiny, tmp_path):
    model = finished / "arms" / "natural" / "model"
    folder = tmp_path / "run"
    base = [o for o in tiny if not o.startswith(("size.", "tokenizer="))]
    assert main(["train", *base, "init=pretrained", f"init.path={model}", f"hydra.run.dir={folder}"]) == 0
    records = lines(folder)
    before = lines(finished)
    start = {r["arm"]: r["value"] for r in records if r["name"] == "validation/loss" and r["step"] == 0}
    end = next(
        r["value"] for r in before if r["name"] == "validation/loss" and r["step"] == 6 and r["arm"] == "natural"
    )
    assert start["natural"] == pytest.approx(end, abs=1e-4)
    assert start["standard"] == pytest.approx(end, abs=1e-4)


def test_hydras_own_abilities(capfd, tiny):
    assert main(["train", "--cfg", "job", "optim=adamw"]) == 0
    assert "name: adamw" in capfd.readouterr().out
    assert main(["train", "--info", "defaults"]) == 0
    assert "optim" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [("natattn tr", "train"), ("natattn train optim=", "optim=adamw"), ("natattn train train.st", "train.steps=")],
)
def test_shell_completion(line, expected):
    result = subprocess.run(
        [sys.executable, "-m", "natattn", "-sc", "query=bash"],
        capture_output=True, text=True, env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout.split()


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(__file__).parents[1].glob("conf/experiment/*.yaml")))
def test_every_experiment_file_trains(name, tmp_path, tiny):
    data = [o for o in tiny if o.startswith(("data", "tracker"))]
    short = ["train.steps=2", "train.evaluate_every=2", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["train", f"experiment={name}", *data, *short]) == 0


@pytest.mark.slow
def test_compiled_arms_learn_as_others_do(tiny, tmp_path):
    losses = {}
    for compile_ in ("false", "true"):
        folder = tmp_path / compile_
        assert main(["train", *tiny, f"train.compile={compile_}", f"hydra.run.dir={folder}"]) == 0
        records = lines(folder)
        losses[compile_] = [r["value"] for r in records if r["name"] == "validation/loss"]
    assert losses["true"] == pytest.approx(losses["false"], abs=1e-3)


def test_bf16_and_epochs_and_accumulation_train(tiny, tmp_path):
    options = ["precision=bf16", "train.sampling=epochs", "train.accumulation_steps=2", "reference=muon"]
    assert main(["train", *tiny, *options, f"hydra.run.dir={tmp_path / 'run'}"]) == 0


def test_a_program_that_stops_reading_is_no_error(finished):
    command = f"{sys.executable} -m natattn report {finished} | head -1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1


def test_a_folder_of_the_users_is_not_removed(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    assert main(["train", *tiny, "data.train=missing.txt", "hydra.run.dir=mine/empty"]) == 2
    assert (tmp_path / "mine" / "empty").is_dir()


def test_an_arm_that_its_last_step_destroys_has_diverged(tiny, tmp_path):
    folder = tmp_path / "run"
    wild = [
        "train.steps=1",
        "schedule.warmup_fraction=0",
        "optim.learning_rate=1e30",
        "optim.learning_rates.hidden=1e30",
    ]
    assert main(["train", *tiny, *wild, f"hydra.run.dir={folder}"]) == 0
    assert json.loads((folder / "run.json").read_text())["arms"]["natural"]["status"] == "diverged"
    assert not (folder / "arms" / "natural").exists()
