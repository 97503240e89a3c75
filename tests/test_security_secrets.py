"""Secrets of the environment, of settings and of addresses: neither shown nor saved."""

import shutil

import pytest
from property_tools import run

from natattn.storage.redaction import redacted

SECRET = "hf_0123456789abcdefghijklmnop"


def test_secrets_of_the_environment_are_refused_in_settings_and_hidden_in_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "DB_PASSWORD", "GITHUB_PAT"):
        monkeypatch.setenv(name, SECRET)
        for override in (
            f"tracker.project=${{oc.env:{name}}}",
            f"tracker.project={SECRET}",
            f"tracker.tags=[a,{SECRET}]",
        ):
            ended = run("train", override)
            assert ended.is_one_line, ended
            assert SECRET not in ended.error
            assert "would be saved" in ended.error
        for folder in (f"hydra.run.dir=outputs/${{oc.env:{name}}}", f"hydra.sweep.dir=outputs/{SECRET}"):
            ended = run("train", "size=pico", folder)
            assert ended.is_one_line, ended
            assert SECRET not in ended.error
            assert "would name a folder" in ended.error
        for command in (["train", f"data={SECRET}"], ["report", f"/{SECRET}"], ["sample", f"run={SECRET}"], [SECRET]):
            ended = run(*command)
            assert ended.code == 2
            assert SECRET not in ended.error + ended.out, command
        monkeypatch.delenv(name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["data.train", "data.dataset", "init.path", "tokenizer.path", "resume"])
def test_a_password_in_an_address_is_never_shown_or_saved(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = "https://user:open_sesame@example.org/x.txt"
    groups = {"data.train": ["data=text"], "data.dataset": ["task=vision", "data=image_dataset"],
              "init.path": ["init=pretrained"], "tokenizer.path": ["tokenizer=hf"]}  # fmt: skip
    ended = run("train", *groups.get(key, []), f"{key}={address}", "tracker=off")
    assert ended.is_one_line, ended
    assert "open_sesame" not in ended.error
    assert not list(tmp_path.iterdir())


def test_redaction_hides_what_it_should_and_nothing_else(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("SSH_KEY", "/home/someone/.ssh/id_rsa")
    monkeypatch.setenv("A_TOKEN", "standard")
    text = f"a {SECRET} at https://user:pass@host/x and https://host/@x, standard, /home/someone/.ssh/id_rsa"
    assert redacted(text) == "a … at https://…@host/x and https://host/@x, standard, /home/someone/.ssh/id_rsa"


def test_no_secret_is_in_what_a_run_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    small = (
        "size.n_layer=1 size.n_embd=8 size.n_head=1 size.context=8 tokenizer=byte data=grammar data.train_tokens=500 "
        "data.validation_tokens=100 data.test_tokens=0 train.batch_size=1 train.steps=1 tracker=offline"
    )
    ended = run("train", *small.split(), "hydra.run.dir=run")
    assert ended.code == 0, ended
    assert run("report", "run").code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "run.json", "metrics.jsonl", "report.html"} <= {f.name for f in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    shutil.rmtree(tmp_path / "run")
