"""Checkpoints: exact, atomic, checked, pruned."""

import errno
import json
import os
import shutil

import pytest
import torch

from natattn.errors import UserError
from natattn.training import checkpoint
from natattn.training.build import build_arms, open_task
from natattn.training.checkpoint import Progress, load_newest, read_arm, save_checkpoint
from natattn.training.settings import compose_run


@pytest.fixture
def arms(tiny):
    settings = compose_run([*tiny, "optim=muon", "reference=muon"])
    arms = build_arms(settings, open_task(settings, progress=False))
    tokens = torch.randint(256, (2, 17))
    for arm in arms:
        for step in range(2):
            arm.train_step([tokens], step, 1.0)
    return arms


def _save(folder, arms, step, keep=2, best=False):
    return save_checkpoint(folder, Progress(step), arms, metrics_position=7 * step, keep=keep, best=best)


def test_weights_and_optimizer_come_back_to_the_bit(arms, tiny, tmp_path):
    _save(tmp_path, arms, 5)
    settings = compose_run([*tiny, "optim=muon", "reference=muon"])
    others = build_arms(settings, open_task(settings, progress=False))
    path, state, warnings = load_newest(tmp_path)
    assert (path.name, state["step"], state["metrics_position"], warnings) == ("step-000005", 5, 35, [])
    tokens = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(1))
    for arm, other in zip(arms, others, strict=True):
        read_arm(path, other, state["optimizers"][other.name])
        assert torch.equal(arm.train_step([tokens], 7, 1.0).loss, other.train_step([tokens], 7, 1.0).loss)
        for a, b in zip(arm.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_only_safetensors_and_json_are_written(arms, tmp_path):
    path = _save(tmp_path, arms, 1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_newest_and_best_are_kept(arms, tmp_path):
    for step in (1, 2, 3, 4):
        _save(tmp_path, arms, step, keep=2, best=step == 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000003", "step-000004"]
    assert json.loads((tmp_path / "best" / "state.json").read_text())["step"] == 2


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(arms, tmp_path, harm):
    _save(tmp_path, arms, 1)
    newest = _save(tmp_path, arms, 2)
    victim = newest / ("manifest.json" if harm == "manifest" else "natural.model.safetensors")
    content = victim.read_bytes()
    if harm == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "remove":
        victim.unlink()
    else:
        victim.write_text("{")
    path, state, warnings = load_newest(tmp_path)
    assert path.name == "step-000001"
    assert state["step"] == 1
    assert len(warnings) == 1
    assert "step-000002" in warnings[0]


def test_an_unfinished_write_is_not_a_checkpoint(arms, tmp_path):
    path = _save(tmp_path, arms, 1)
    shutil.copytree(path, tmp_path / ".writing-000002")
    assert load_newest(tmp_path)[0] == path
    _save(tmp_path, arms, 2)
    assert not (tmp_path / ".writing-000002").exists()


def test_without_checkpoints_there_is_nothing_to_load(tmp_path):
    assert load_newest(tmp_path / "checkpoints") == (None, {}, [])


def test_a_checkpoint_of_another_architecture_is_refused(arms, tiny, tmp_path):
    path = _save(tmp_path, arms, 1)
    settings = compose_run([*tiny, "optim=muon", "size.n_embd=32"])
    others = build_arms(settings, open_task(settings, progress=False))
    _, state, _ = load_newest(tmp_path)
    with pytest.raises(UserError, match=r"transformer\.wte\.weight has shape"):
        read_arm(path, others[0], state["optimizers"][others[0].name])


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_the_old_one(arms, tmp_path, monkeypatch):
    before = _save(tmp_path, arms, 1, best=True)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_install", full)
    with pytest.raises(OSError, match="No space left"):
        _save(tmp_path, arms, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000001"]
    assert load_newest(tmp_path)[0] == before


def test_the_best_is_kept_where_there_are_no_hard_links(arms, tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2, 3):
        _save(tmp_path, arms, step, keep=1, best=step == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000003"]
    (tmp_path / "best").rename(tmp_path / "step-000009")
    path, state, warnings = load_newest(tmp_path)  # whole, by its digests
    assert (path.name, state["step"], warnings) == ("step-000009", 1, [])
