"""Several ranks on gloo against one process on the same global batches, in float64."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from natattn.config.compose import groups
from natattn.tracking.metrics_file import read_metrics
from natattn.training.checkpoint import load_newest
from natattn.training.settings import compose_run
from natattn.training.train import train

NAMED_BY_THE_PLAN = ("adamw", "aif", "muon", "fisher_muon", "natural_muon")
OPTIMIZERS = groups()["optim"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
TOLERANCE = 1e-8
# The null space of a first gradient's covariance has no basis of its own: SOAP's is whatever the last bit makes it.
TOLERANCES = {"soap": 2e-2, "soap_muon": 2e-2}


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _run_jobs(folder, jobs, *options):
    listed = folder / "jobs.json"
    listed.write_text(json.dumps([[overrides, str(target)] for overrides, target in jobs]))
    worker = Path(__file__).with_name("ranks_worker.py")
    command = [*TORCHRUN, "--standalone", *options, str(worker), str(listed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=_environment())
    assert result.returncode == 0, result.stderr


def _alone(overrides, folder):
    train(compose_run(overrides), folder)


def _values(folder):
    metrics = read_metrics(folder / "metrics.jsonl")
    rows = zip(metrics.step, metrics.arm, metrics.name, metrics.value, strict=True)
    return {(step, arm, name): value for step, arm, name, value in rows if not name.startswith("time/")}


def _assert_equal(first, second, tolerance=TOLERANCE):
    expected, found = _values(first), _values(second)
    assert expected.keys() == found.keys()
    far = {
        key: (expected[key], found[key])
        for key in expected
        if abs(expected[key] - found[key]) > tolerance * max(1.0, abs(expected[key]))
    }
    assert not far


def _overrides(tiny, optimizer, *more):
    steps = 50 if optimizer in NAMED_BY_THE_PLAN else 6
    lengths = [f"train.steps={steps}", "train.evaluate_every=25", "train.checkpoint_every=50"]
    return [*tiny, "precision=fp64", f"optim={optimizer}", *lengths, *more]


@pytest.fixture(scope="module")
def shared_runs(tiny, tmp_path_factory):
    """Every optimizer with each way of sharing, by one start of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [
        (_overrides(tiny, optimizer, f"train.parallel={parallel}"), folder / f"{optimizer}_{parallel}")
        for optimizer in OPTIMIZERS
        for parallel in ("ddp", "fsdp")
    ]
    _run_jobs(folder, jobs)
    return folder


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_equal_one(shared_runs, tiny, tmp_path, optimizer):
    _alone(_overrides(tiny, optimizer), tmp_path / "alone")
    for parallel in ("ddp", "fsdp"):
        tolerance = TOLERANCES.get(optimizer, TOLERANCE)
        _assert_equal(tmp_path / "alone", shared_runs / f"{optimizer}_{parallel}", tolerance)


VARIANTS = {
    "accumulation": ["optim=muon", "train.accumulation_steps=2", "train.batch_size=8"],
    "shuffled factors": ["optim=fisher_muon", "optim.placebo=shuffled"],
    "constant energy": ["optim=aif", "optim.placebo=constant"],
    "one arm, some steps observed": ["optim=aif", "reference=none", "probe.every=3"],
    "QK-clip": ["optim=muon", "stabilisers.qk_clip=0.01"],
    "tempered": ["model=tempered_cosine", "optim=aif"],
    "epochs": ["optim=whitened_muon", "train.sampling=epochs"],
}


def test_variants_of_a_run_equal_one_process_too(tiny, tmp_path):
    common = [*tiny, "precision=fp64"]
    for name, more in VARIANTS.items():
        _alone([*common, *more], tmp_path / name / "alone")
    ways = {name: ["ddp"] if name == "QK-clip" else ["ddp", "fsdp"] for name in VARIANTS}
    jobs = [
        ([*common, *VARIANTS[name], f"train.parallel={way}"], tmp_path / name / way)
        for name, own in ways.items()
        for way in own
    ]
    _run_jobs(tmp_path, jobs)
    for name, own in ways.items():
        for way in own:
            _assert_equal(tmp_path / name / "alone", tmp_path / name / way)


@pytest.mark.parametrize(
    ("optimizer", "parallel"),
    [
        ("natural_muon", "fsdp"),
        ("aif", "ddp"),
        pytest.param("natural_muon", "ddp", marks=pytest.mark.slow),
        pytest.param("aif", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_from_two_ranks_to_one_and_back(tiny, tmp_path, optimizer, parallel):
    common = [*tiny, "precision=fp64", f"optim={optimizer}", "schedule=constant", "schedule.warmup_steps=2"]
    common = [text for text in common if not text.startswith(("train.steps", "schedule.warmup_fraction"))]
    common.append(f"train.parallel={parallel}")
    run, alone = tmp_path / "run", tmp_path / "alone"
    for steps, by_two in ((4, True), (8, False), (12, True)):
        length = f"train.steps={steps}"
        _alone([*common, length, *([f"resume='{alone}'"] if alone.exists() else [])], alone)
        overrides = [*common, length, *([f"resume='{run}'"] if run.exists() else [])]
        if by_two:
            _run_jobs(tmp_path, [(overrides, run)])
        else:
            _alone(overrides, run)
    _assert_equal(alone, run)


def test_parts_of_a_checkpoint_are_safetensors_and_json(shared_runs):
    checkpoint = max((shared_runs / "natural_muon_fsdp" / "checkpoints").glob("step-*"))
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    parts = [path for path in files if path.parent.name == "natural.parts"]
    assert len(parts) == 2


def test_ranks_share_the_work_on_matrices(shared_runs):
    """What one rank wrote of the roots, another did not."""
    from safetensors import safe_open

    checkpoint = max((shared_runs / "natural_muon_ddp" / "checkpoints").glob("step-*"))
    names = []
    for path in (checkpoint / "natural.parts").iterdir():
        with safe_open(path, framework="pt") as file:
            names.append({name for name in file.keys() if name.endswith("momentum")})  # noqa: SIM118
    assert all(names)
    assert not names[0] & names[1]


def test_exported_models_are_alike(shared_runs):
    import torch
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(16)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(shared_runs / f"aif_{way}" / "arms" / "natural" / "model")(tokens).logits
        for way in ("ddp", "fsdp")
    ]
    assert torch.allclose(*logits, atol=1e-8)
    saved = json.loads((shared_runs / "aif_fsdp/arms/natural/model/config.json").read_text())
    assert saved["architectures"] == ["GPT2LMHeadModel"]


def _start(overrides, folder, *options):
    command = [*TORCHRUN, "--standalone", *options, "-m", "natattn", "train", *overrides, f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(), cwd=folder.parent
    )


def _wait_for_checkpoint(folder, process):
    deadline = time.time() + 300
    while not list(folder.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.time() < deadline
        time.sleep(0.05)


def _ranks_of(launcher):
    """Process numbers of the launcher's ranks, in the order of their ranks."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (entry / "environ").read_bytes().split(b"\0")
            except (OSError, IndexError, ValueError):
                continue
            ranks = [int(item[5:]) for item in environment if item.startswith(b"RANK=")]
            if parent == launcher.pid and ranks:
                found[ranks[0]] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


LONG = ["train.steps=2000", "train.checkpoint_every=20", "train.evaluate_every=1000", "precision=fp64"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_job_with_one_line(tiny, tmp_path, victim):
    process = _start([*tiny, *LONG], tmp_path / "run")
    _wait_for_checkpoint(tmp_path / "run", process)
    os.kill(_ranks_of(process)[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("natattn: another rank has ended") == 1
    assert "natattn/training/train.py" not in errors  # no traceback of ours


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_restart_by_torchrun_goes_on_with_the_run(tiny, tmp_path, ranks):
    length = ["train.steps=120", "train.checkpoint_every=20", "train.evaluate_every=60", "precision=fp64"]
    _alone([*tiny, *length], tmp_path / "alone")
    process = _start([*tiny, *length], tmp_path / "run", "--max-restarts=1", f"--nproc-per-node={ranks}")
    _wait_for_checkpoint(tmp_path / "run", process)
    os.kill(_ranks_of(process)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    _assert_equal(tmp_path / "alone", tmp_path / "run")


def test_a_signal_stops_all_ranks_with_a_whole_checkpoint(tiny, tmp_path):
    process = _start([*tiny, *LONG], tmp_path / "run")
    _wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert "natattn: interrupted; resume with" in errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    path, state, warnings = load_newest(tmp_path / "run" / "checkpoints")
    assert path is not None
    assert warnings == []
    last = max(step for step, _, name in _values(tmp_path / "run") if name == "train/loss")
    assert 0 < last <= state["step"] < 2000


def test_activation_checkpointing_changes_nothing(tiny, tmp_path):
    short = ["optim=natural_muon", "precision=fp64", "train.activation_checkpointing=true"]
    jobs = [([*tiny, *short, f"train.parallel={way}"], tmp_path / way) for way in ("ddp", "fsdp")]
    _run_jobs(tmp_path, jobs)
    _alone([*tiny, *short[:2]], tmp_path / "alone")
    for way in ("ddp", "fsdp"):
        _assert_equal(tmp_path / "alone", tmp_path / way)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_ranks_agree_that_time_is_up_and_that_an_arm_has_diverged(tiny, tmp_path, parallel):
    way = [*tiny, f"train.parallel={parallel}"]
    jobs = [
        ([*way, "train.max_seconds=1e-9"], tmp_path / "late"),
        ([*way, "optim=sgd", "optim.learning_rate=1e30", "train.clip_norm=null"], tmp_path / "diverged"),
    ]
    _run_jobs(tmp_path, jobs)
    late = json.loads((tmp_path / "late" / "run.json").read_text())
    assert late["status"] == "time_limit"
    diverged = json.loads((tmp_path / "diverged" / "run.json").read_text())
    assert diverged["status"] == "finished"
    assert diverged["arms"]["natural"]["status"] == "diverged"
    assert diverged["arms"]["standard"]["status"] == "finished"
    assert read_metrics(tmp_path / "diverged" / "metrics.jsonl").step.max() == 6


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch_size=3"], "train.batch_size=3: cannot be divided equally among 2 ranks"),
        (["model=published"], "model=published"),
        (["train.parallel=fsdp", "stabilisers.qk_clip=10"], "train.parallel=ddp"),
        (["-m", "seed=0,1"], "Start torchrun once for each job"),
        (["train.parallel=both"], "train.parallel=both"),
    ],
)
def test_mistakes_are_told_once(tiny, tmp_path, overrides, said):
    process = _start([*tiny, *overrides], tmp_path / "run")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("natattn:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "run").exists()
