"""Sweeps on Hydra's launchers: the jobs run elsewhere, their folders and their failures come back."""

import contextlib
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import GPT2LMHeadModel

from natattn.cli.main import main

# By default submitit has a folder for each job, and makes it after it has started the process that opens its log
# there: on a busy machine that process may be first, and the job is lost. One folder for all jobs is there before.
SUBMITIT = ["hydra.launcher.timeout_min=10", "hydra.launcher.submitit_folder='${hydra.sweep.dir}/.submitit'"]
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", SUBMITIT),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_on_a_launcher(tiny, tmp_path, launcher):
    module, options = LAUNCHERS[launcher]
    if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(module) is None:
        pytest.skip(f"the extra {launcher.removesuffix('_local')} is not installed")
    text = next(entry.removeprefix("data.train=") for entry in tiny if entry.startswith("data.train="))
    overrides = [entry for entry in tiny if not entry.startswith("data.train=")]
    command = [sys.executable, "-m", "natattn", "train", "-m", f"hydra/launcher={launcher}", *options, *overrides]
    process = subprocess.Popen(
        [*command, f"data.train={text},{tmp_path / 'missing.txt'}", "reference=none"], cwd=tmp_path, text=True,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the launcher's processes too
    logs = [path.read_text() for path in tmp_path.glob("outputs/*/.submitit/*_log.err")]
    assert process.returncode == 2, "\n".join([said, *logs])[-5000:]
    finished = [json.loads(path.read_text())["status"] for path in tmp_path.glob("outputs/*/*/run.json")]
    assert finished == ["finished"]


def test_the_models_of_a_job_are_freed_before_the_next(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left, collect = [], gc.collect

    def models():
        return sum(type(each) is GPT2LMHeadModel for each in gc.get_objects())

    def watched():
        collect()
        left.append(models())

    collect()
    before = models()
    monkeypatch.setattr("natattn.cli.run.gc", SimpleNamespace(collect=watched))
    assert main(["train", "-m", *tiny, "train.steps=2", "seed=0,1"]) == 0
    assert left == [before, before]
