"""Vision and multimodal runs: the same arms, attention types, optimizers, guards and checkpoints as language has."""

import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from run_metrics import records
from small_tasks import TASKS

from natattn.cli.main import main
from natattn.config.compose import groups
from natattn.distributed.ranks import Ranks
from natattn.errors import UserError
from natattn.tasks import BatchSlice
from natattn.training.arm import Arm, weights_hash
from natattn.training.build import build_arms, open_task
from natattn.training.evaluate import attention_metrics, split_metrics
from natattn.training.guards import check_guards, check_independence
from natattn.training.run_folder import config_hash
from natattn.training.settings import compose_run

MODELS = {
    "natural": [],
    "natural_gradient": [],
    "tempered": ["model.attention.temperature.value=2"],
    "tempered_per_head": ["model.attention.temperature.values=[0.5,2]"],
    "tempered_critical": [],
    "tempered_cosine": [],
}


def arms_of(overrides: list[str], *more: str) -> list[Arm]:
    settings = compose_run([*overrides, *more])
    return build_arms(settings, open_task(settings, progress=False))


def step(arm: Arm, number: int = 0) -> float:
    return float(arm.train_step([arm.task.batch(number, BatchSlice())], number, 1.0).loss)


def equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_arms_start_alike_and_see_the_same(small):
    standard, natural = arms_of(small)
    assert weights_hash(standard.model) == weights_hash(natural.model)
    assert standard.model.config._attn_implementation == "sdpa"
    assert step(standard) == pytest.approx(step(natural), abs=1e-5)
    assert natural.probe is not None
    assert natural.probe.recorded_layers == list(range(2 if natural.task.kind == "vision" else 4))


@pytest.mark.parametrize("model", MODELS)
def test_every_attention_type_learns(model, small):
    for arm in arms_of(small, f"model={model}", *MODELS[model]):
        losses = []
        for number in range(4):
            arm.at_step(number, 6)
            losses.append(float(arm.train_step([arm.task.batch(0, BatchSlice())], number, 1.0).loss))
        assert losses[-1] < losses[0], (arm.name, losses)


OF_PAIRS = ("aif", "aif_blend", "multiscale", "critical", "fisher_muon", "natural_muon", "soap_muon")
OPTIMIZERS = [("vision", name) for name in groups()["optim"]] + [("multimodal", name) for name in OF_PAIRS]


@pytest.mark.parametrize(("task", "optim"), OPTIMIZERS)
def test_every_optimizer_takes_steps(task, optim):
    (arm,) = arms_of(TASKS[task], "reference=none", f"optim={optim}")
    before = {name: parameter.detach().clone() for name, parameter in arm.model.named_parameters()}
    losses = [step(arm, number) for number in range(3)]
    assert all(np.isfinite(losses))
    still = [name for name, parameter in arm.model.named_parameters() if torch.equal(parameter, before[name])]
    # Keys shift all energies of a row alike, and a caption's end token alone is read off: their gradients vanish.
    assert all("bias" in name or "embed" in name for name in still), still


@pytest.mark.parametrize("option", ["qk_norm", "softcap", "qk_clip"])
def test_stabilisers_bound_the_energies_of_both_arms(option, small):
    bound = {"qk_norm": "true", "softcap": "0.4", "qk_clip": "0.4"}[option]
    for arm in arms_of(small, f"stabilisers={option}", f"stabilisers.{option}={bound}"):
        with torch.no_grad():
            for name, parameter in arm.model.named_parameters():
                if any(part in name for part in ("q_proj.weight", "k_proj.weight")):
                    parameter.mul_(5)
        step(arm)
        metrics = attention_metrics(arm, arm.task.probe_inputs(arm.device))
        largest = {"qk_norm": 8**0.5, "softcap": 0.4, "qk_clip": 0.6}[option]  # clipped for the batch, not for all
        maxima = {name: value for name, value in metrics.items() if name.endswith("/maximum")}
        assert maxima
        assert max(maxima.values()) <= largest * 1.001, maxima


def test_parts_of_a_batch_are_the_batch(small):
    task = open_task(compose_run(small), progress=False)
    whole = task.batch(3, BatchSlice())
    parts = [task.batch(3, BatchSlice(rank, 2, index, 2)) for rank in range(2) for index in range(2)]
    assert equal(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})
    assert equal(whole, task.batch(3, BatchSlice()))
    assert not equal(whole, task.batch(4, BatchSlice()))


def test_metrics_do_not_depend_on_the_batch(small):
    (arm,) = arms_of(small, "reference=none")
    first, second = (split_metrics(arm, "validation", batch_size=size) for size in (7, 500))
    assert next(iter(first)) == "validation/loss"
    assert first == pytest.approx(second, rel=1e-5, abs=1e-6)


def test_an_untrained_arm_is_near_chance(small):
    (arm,) = arms_of(small, "reference=none")
    chance, metrics = arm.task.data_summary()["chance"], split_metrics(arm, "validation", batch_size=64)
    assert metrics["validation/loss"] == pytest.approx(chance["loss"], rel=0.25)
    assert {f"validation/{name}" for name in chance} <= set(metrics)


def test_examples_must_not_see_each_other(small):
    arms = arms_of(small)
    assert check_guards(arms, attention=compose_run(small).model.attention) == []
    arm = arms[1]
    tower = arm.model.vit if arm.task.kind == "vision" else arm.model.vision_model

    def normalise_over_the_batch(module, arguments, output):
        return output - 0.5 * output.mean(0, keepdim=True)

    tower.layernorm.register_forward_hook(normalise_over_the_batch)
    with pytest.raises(UserError, match="arm natural: its output for an example changes"):
        check_independence(arm)
    with torch.no_grad():
        tower.layernorm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="arm natural: its outputs are not finite"):
        check_independence(arm)


def test_a_run_is_written_reported_and_goes_on_exactly(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *small, "hydra.run.dir=whole"]) == 0
    shown = capsys.readouterr().out
    assert "chance: loss" in shown
    assert "tokens/s" not in shown
    assert "bigram" not in shown
    assert main(["train", *small, "hydra.run.dir=cut", "train.max_seconds=1e-9"]) == 0
    assert main(["train", "resume=cut", "train.max_seconds=null"]) == 0
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert main(["report", "whole"]) == 0
    assert (tmp_path / "whole" / "report.html").exists()
    assert main(["analyze", "run=whole", "sections=[heads,patterns,spectra]", "law_replicas=0"]) == 0
    capsys.readouterr()
    for command, said in {
        ("sample", "run=whole"): "its arms do not generate text",
        ("analyze", "run=whole", "sections=[cascades]"): "cascades is not of ViT",
    }.items():
        assert main(list(command)) == 2
        assert said in capsys.readouterr().err


def test_the_text_tower_is_looked_at_where_there_is_one(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *small, "reference=none", "hydra.run.dir=run"]) == 0
    done = main(["analyze", "run=run", "tower=text", "sections=[heads,cascades]", "law_replicas=0"])
    if json.loads((tmp_path / "run" / "run.json").read_text())["task"] == "vision":
        assert done == 2
        assert "tower=text: run run has one tower; valid: null" in capsys.readouterr().err
    else:
        assert done == 0
        subject = json.loads((tmp_path / "run" / "analysis_natural_text" / "analysis.json").read_text())["subject"]
        assert re.fullmatch(r".*, \d+ captions × \d+ tokens of its validation split", subject["read"])


@pytest.mark.parametrize("model", ["natural", "tempered_per_head"])
def test_a_saved_arm_computes_the_same(model, small, tmp_path, monkeypatch):
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

    monkeypatch.chdir(tmp_path)
    assert main(["train", *small, f"model={model}", *MODELS[model], "hydra.run.dir=run"]) == 0
    settings = compose_run([*small, f"model={model}", *MODELS[model]])
    task = open_task(settings, progress=False)
    folder = tmp_path / "run" / "arms" / model / "model"
    auto = AutoModelForImageClassification if task.kind == "vision" else AutoModel
    loaded = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        found = task.evaluate(
            loaded, "test", autocast=nullcontext, batch_size=64, device=torch.device("cpu"), ranks=Ranks()
        )
    last = {name: value for _, arm, name, value in records(tmp_path / "run") if arm == model}
    assert found == pytest.approx({name: last[f"test/{name}"] for name in found}, rel=1e-4, abs=1e-4)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (task.corpus.mean, task.corpus.std)


WRONG = {
    "data of another task": (["task=vision", "data=stdlib"], "is for task=language; valid for task=vision: digits"),
    "images without the task": (["data=digits"], "data.kind=digits: is for task=vision"),
    "a tokenizer for images": (["task=vision", "tokenizer=byte"], "valid: tokenizer=none"),
    "no tokenizer for captions": (["task=multimodal", "tokenizer=none"], "task=multimodal reads text"),
    "no packing for text": (["packing=none"], "task=language packs its text"),
    "a context for images": (["task=vision", "size.context=5"], "valid for task=vision: null"),
    "no context for text": (["size.context=null"], "size.context: no value"),
    "captions too long": (["task=multimodal", "size.context=3"], "size.context=3: the longest caption has"),
    "patches that do not fill": (["task=vision", "task.patch_size=3"], "does not divide data.image_size=8"),
    "published": (["task=vision", "model=published"], "model=published: is a language model"),
    "seeds": (["task=vision", "seeds=2"], "its models cannot be stacked"),
    "slices of pairs": (["task=multimodal", "train.accumulation_steps=2"], "valid for task=multimodal: 1"),
    "pretrained pairs": (["task=multimodal", "init=pretrained", "init.path=x"], "not supported by task=multimodal"),
    "no such task": (["task=vison"], "did you mean vision?"),
    "no such key": (["task=vision", "+task.patches=2"], "task.patches: unknown key"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides, said = WRONG[name]
    assert main(["train", *overrides, "tracker=off", "train.steps=4", "schedule.warmup_fraction=0.5"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_language_run_keeps_the_hash_it_had_before_there_were_tasks(tiny):
    values = compose_run(tiny).model_dump(mode="json")
    assert values["task"] == {"kind": "language"}
    assert config_hash(values) == config_hash({key: value for key, value in values.items() if key != "task"})


def test_learning_rates_are_scaled_for_both_arms():
    for arm in arms_of(TASKS["vision"], "task.learning_rate_scale=0.5", "optim=adamw"):
        rates = {group["lr"] for group in arm.optimizer.param_groups}
        assert rates == {0.5 * 1e-2, 0.5 * 2e-3}


def test_a_pretrained_classifier_gets_a_layer_for_the_new_classes(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    known = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=3, **sizes))
    known.save_pretrained(tmp_path / "vit")
    options = ["task=vision", "size=pretrained", "init=pretrained", f"init.path={tmp_path / 'vit'}", "tracker=off"]
    standard, natural = arms_of(options)
    assert torch.equal(natural.model.vit.layers[0].mlp.fc1.weight, known.vit.layers[0].mlp.fc1.weight)
    assert natural.model.classifier.weight.shape == (10, 16)
    assert weights_hash(standard.model) == weights_hash(natural.model)
    for wrong, said in {
        "data.image_size=16": r"data\.image_size=16: the model at .* has 8",
        "task.patch_size=4": r"task\.patch_size=4: the model at .* has 2",
        "size.n_layer=3": "has 2; use size=pretrained",
    }.items():
        with pytest.raises(UserError, match=said):
            arms_of(options, wrong)
