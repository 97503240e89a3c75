"""The doctor finds what is broken, says what to do about it, and is never ended by it."""

import contextlib
import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from natattn import config
from natattn.cli import main
from natattn.data import prepare
from natattn.data.cache import cache_root
from natattn.doctor import examine, kernels, machine, services, storage, trial, versions
from natattn.doctor.findings import Finding, amount, examined
from natattn.doctor.show import show
from natattn.training.build import open_task


def _found(part, check) -> dict[str, Finding]:
    return {finding.what: finding for finding in examined(part, check)}


def _without(monkeypatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)


def test_all_is_well_here(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "quick=true"]) == 0
    said = capsys.readouterr().out
    assert "natattn doctor: all is well" in said
    for name in ("Python", "torch", torch.__version__, "attention kernels", "bfloat16", "runs", "wandb"):
        assert name in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "said"), [(["fast=true"], "fast=true"), (["quick=maybe"], "quick=maybe")])
def test_wrong_arguments_end_with_one_line(arguments, said, capsys):
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_its_help_needs_nothing():
    heavy = ("torch", "pydantic", "hydra", "rich", "numpy")
    code = (
        "import sys; from natattn.cli import main; code = main(['doctor', '--help']);"
        f"loaded = [m for m in {heavy} if m in sys.modules]; assert not loaded, loaded; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: natattn doctor" in result.stdout


def test_it_trains_a_little_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.environ["NATATTN_CACHE"]
    found = _found("training", trial.training)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["resuming"].found.startswith("to the same bits")
    assert not list(tmp_path.glob("natattn*"))  # torch keeps a folder of its own there
    assert os.environ["NATATTN_CACHE"] == before


@pytest.mark.parametrize(
    ("whole", "stopped", "broken", "said"),
    [
        ((2.0, 1.0), (2.0, 1.0), None, ""),
        ((2.0, 2.0), (2.0, 2.0), "both arms learn", "no: standard 2.000 → 2.000"),
        ((2.0, math.nan), (2.0, 1.0), "both arms learn", "nan"),
        ((2.0, 1.0), (2.0, 1.5), "resuming", "0.5"),
        ((2.0, 1.0), (2.0,), "resuming", "does not give the same losses"),
    ],
)
def test_training_that_goes_wrong_is_told(whole, stopped, broken, said, monkeypatch):
    series = {"whole": whole, "stopped": stopped}

    def losses(folder):
        arms = ("standard", "natural")
        values = series[folder.name]
        return [(step, f"{arm}/validation/loss", value) for step, value in enumerate(values) for arm in arms]

    monkeypatch.setattr(trial, "_train", lambda *arguments, **options: None)
    monkeypatch.setattr(trial, "_losses", losses)
    found = _found("training", trial.training)
    assert [what for what, finding in found.items() if finding.state == "broken"] == ([broken] if broken else [])
    if broken:
        assert said in found[broken].found
        assert found[broken].advice


def test_a_run_that_fails_is_a_finding(monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trial, "_train", fail)
    (finding,) = examined("training", trial.training)
    assert finding.state == "broken"
    assert "No space left on device" in finding.found
    assert "\n" not in finding.found + finding.advice


def test_missing_old_and_broken_packages_are_told(monkeypatch):
    monkeypatch.setattr(
        versions, "_required", lambda: (">=3.99", ["matplotlib", "rich>=99", "not-a-package>=2", "pyyaml>=1"])
    )
    _without(monkeypatch, "matplotlib")
    found = _found("versions", versions.versions)
    assert {what: finding.state for what, finding in found.items()} == {
        "Python": "broken", "natattn": "ok", "matplotlib": "broken", "rich": "broken", "not-a-package": "broken",
        "pyyaml": "ok",
    }  # fmt: skip
    assert "cannot be imported" in found["matplotlib"].found
    assert found["matplotlib"].advice == 'python -m pip install "matplotlib" --force-reinstall'
    assert "outside >=99" in found["rich"].found
    assert found["not-a-package"].advice == 'python -m pip install "not-a-package>=2"'


def test_requirements_are_those_of_the_project():
    python, requirements = versions._required()
    assert python.startswith(">=3.11")
    assert any(each.startswith("torch>=") for each in requirements)
    assert not any(each.startswith("pytest") for each in requirements)


def test_without_torch_it_still_reports(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versions, "versions", lambda: [Finding("torch", "not installed", "broken", "install it")])
    for name in ("torch", "natattn.data.hub", "natattn.training.environment"):
        _without(monkeypatch, name)
    assert main(["doctor", "quick=true"]) == 1
    said = capsys.readouterr()
    assert "broken: torch: not installed → install it" in said.out
    assert "broken: kernels: could not be examined" in said.out
    assert "Traceback" not in said.out + said.err


def test_a_cache_with_damaged_and_stale_files(monkeypatch, tmp_path):
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    settings = config.settings_of(config.compose(["data=grammar", "data.train_tokens=5000", "tokenizer=byte"]))
    prepare(settings.data, settings.tokenizer, progress=False)
    found = _found("storage", storage.storage)
    assert {finding.state for finding in found.values()} == {"ok"}
    (entry,) = (cache_root() / "tokens").iterdir()
    (entry / "train.bin").write_bytes(b"\0" + (entry / "train.bin").read_bytes()[1:] + b"\0")
    for name in ("images", "tokenizers"):
        (cache_root() / name / "0123").mkdir(parents=True)
        (cache_root() / name / "0123" / "meta.json").write_text("{")
    stale, fresh = entry / ".train.bin.0.tmp", entry / ".train.bin.1.tmp"
    for path in (stale, fresh):
        path.write_bytes(bytes(2048))
    old = time.time() - 3 * 24 * 3600
    os.utime(stale, (old, old))
    found = _found("storage", storage.storage)
    assert found["damaged entries"].found == f"3, such as {entry}"
    assert found["damaged entries"].state == "note"
    assert found["temporary files"].found == "1 of killed processes, 2 KiB"
    removal = found["temporary files"].advice.partition(": ")[2]
    subprocess.run(removal, shell=True, check=True)
    assert not stale.exists()
    assert fresh.exists()


def test_folders_that_cannot_be_written_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file")
    found = _found("storage", storage.storage)
    assert found["runs"].state == "broken"
    assert "hydra.run.dir" in found["runs"].advice

    def read_only(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    found = _found("storage", storage.storage)
    assert {what: finding.state for what, finding in found.items() if what in ("runs", "cache", "hub cache")} == {
        "runs": "broken", "cache": "broken", "hub cache": "note",
    }  # fmt: skip
    assert "Read-only file system" in found["cache"].found
    assert "NATATTN_CACHE" in found["cache"].advice


def test_folders_that_are_links_to_nothing_or_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "loop"))
    found = _found("storage", storage.storage)
    assert found["runs"].state == found["cache"].state == "broken"
    assert f"{tmp_path / 'outputs'} is a link that leads nowhere" in found["runs"].found
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tokens").write_text("a file")
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    found = _found("storage", storage.storage)
    assert [what for what, finding in found.items() if finding.state == "broken"] == ["runs", "cache/tokens"]
    assert "Not a directory" in found["cache/tokens"].found
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / ("x" * 300)))
    found = _found("storage", storage.storage)
    assert "File name too long" in found["cache"].found
    assert "storage" not in found


def test_what_it_says_to_run_can_be_pasted(monkeypatch, tmp_path):
    cache = tmp_path / "my cache's"
    monkeypatch.setenv("NATATTN_CACHE", str(cache))
    entry = cache / "tokens" / "e1"
    entry.mkdir(parents=True)
    stale = entry / ".train.bin.0.tmp"
    stale.touch()
    os.utime(stale, (0, 0))
    found = _found("storage", storage.storage)
    for what in ("temporary files", "damaged entries"):
        assert entry.exists()
        subprocess.run(found[what].advice.rpartition(": ")[2], shell=True, check=True)
        assert not stale.exists()
    assert not entry.exists()


def test_an_address_of_wandb_that_is_none_is_a_finding(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:password@[::1")
    found = _found("services", services.services)
    assert "services" not in found
    assert found["wandb"].state == "broken"
    assert "WANDB_BASE_URL" in found["wandb"].found
    assert "WANDB_BASE_URL" in found["wandb"].advice
    assert "password" not in repr(found["wandb"])


@pytest.mark.parametrize(("free", "state"), [(10 << 30, "ok"), (1 << 30, "note"), (1 << 20, "broken")])
def test_room_for_runs(free, state, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2 * free, free, free))
    assert _found("storage", storage.storage)["runs"].state == state


@pytest.mark.parametrize("where", ["environment", "netrc", "nowhere"])
def test_keys_are_looked_for_and_never_shown(where, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "abcdef0123")
    (tmp_path / ".netrc").write_text(
        "machine api.wandb.ai login user password abcdef0123\n" if where == "netrc" else "machine", encoding="utf-8"
    )
    (tmp_path / ".netrc").chmod(0o600)
    finding = _found("services", services.services)["wandb"]
    assert finding.state == "ok"
    assert finding.found.startswith("not logged in" if where == "nowhere" else "logged in")
    assert "abcdef" not in repr(finding)


def test_the_hub_is_asked_only_where_that_is_allowed(monkeypatch):
    import natattn.data.hub

    asked = []
    monkeypatch.setattr(natattn.data.hub, "hub_reachable", lambda: bool(asked.append(1)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in _found("services", services.services)["Hugging Face Hub"].found
    assert not asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    finding = _found("services", services.services)["Hugging Face Hub"]
    assert asked
    assert finding.state == "note"
    assert "data=stdlib" in finding.advice


def test_too_many_threads_and_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = _found("machine", machine.machine)
    assert found["threads"].state == "note"
    assert "OMP_NUM_THREADS=" in found["threads"].advice
    assert found["GPU"].state == "note"
    assert "without CUDA" in found["GPU"].found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _found("machine", machine.machine)["GPU"].state == "broken"


def test_kernels_that_fail_are_told(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no kernel\nand more lines")

    monkeypatch.setattr(kernels, "_attend", fail)
    monkeypatch.setattr(kernels, "_multiply_in_bfloat16", fail)
    found = _found("kernels", kernels.kernels)
    assert {finding.state for finding in found.values()} == {"broken"}
    assert "RuntimeError: no kernel" in found["attention kernels"].found
    monkeypatch.setattr(kernels, "_compile", fail)
    assert _found("compiling", kernels.compiling)["torch.compile"].state == "note"


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU another compiler is needed")
@pytest.mark.parametrize(("chosen", "said"), [(None, "no C++ compiler"), ("missing++", "missing++")])
def test_without_a_compiler(chosen, said, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False) if chosen is None else monkeypatch.setenv("CXX", chosen)
    finding = _found("compiling", kernels.compiling)["torch.compile"]
    assert finding.state == "note"
    assert said in finding.found
    assert "g++" in finding.advice


@pytest.mark.slow
def test_everything_with_compiling_and_training(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    findings = examine(quick=False)
    assert not [finding for finding in findings if finding.state == "broken"]
    assert {"compiling", "training"} <= {finding.part for finding in findings}


def test_without_rich_it_prints_plain_lines(monkeypatch):
    for name in ("rich", "rich.console", "rich.table", "rich.text"):
        _without(monkeypatch, name)
    stream = io.StringIO()
    show([Finding("rich", "not installed", "broken", "install it", "versions")], stream)
    assert stream.getvalue().splitlines() == [
        "versions   broken rich: not installed",
        "broken: rich: not installed → install it",
        "natattn doctor: 1 broken",
    ]


def test_amounts_are_for_people():
    assert [amount(size) for size in (12, 2048, 5 << 20, 3 << 30)] == ["12 bytes", "2 KiB", "5 MiB", "3.0 GiB"]


def test_every_finding_that_is_not_well_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for finding in [*examined("machine", machine.machine), *examined("storage", storage.storage)]:
        assert bool(finding.advice) == (finding.state != "ok")
        assert json.dumps([finding.what, finding.found, finding.advice]).count("\\n") == 0


@pytest.mark.parametrize(
    ("meminfo", "state", "said"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    524288 kB\n", "note", "512 MiB free"),
        ("MemAvailable:   4194304 kB\n", "ok", "4.0 GiB free"),
        ("MemTotal: 9 kB\n", "ok", "unknown"),
        ("MemAvailable:\n", "ok", "unknown"),
        (None, "ok", "unknown"),
    ],
)
def test_memory_is_what_the_system_says_is_available(meminfo, state, said, monkeypatch):
    read = Path.read_text

    def of_this_system(path, *arguments, **options):
        if path != Path("/proc/meminfo"):
            return read(path, *arguments, **options)
        if meminfo is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return meminfo

    monkeypatch.setattr(Path, "read_text", of_this_system)
    finding = _found("machine", machine.machine)["memory"]
    assert (finding.state, finding.found) == (state, said)


def test_gpus_are_told_with_their_free_memory(monkeypatch):
    free = {0: 20 << 30, 1: 1 << 20}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 40 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    found = _found("machine", machine.machine)
    assert found["cuda:0"].found.startswith("GPU 0, 20.0 GiB free of 40.0 GiB")
    assert (found["cuda:0"].state, found["cuda:1"].state) == ("ok", "note")
    assert "CUDA_VISIBLE_DEVICES" in found["cuda:1"].advice


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_no_fault(hidden, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    finding = _found("machine", machine.machine)["GPU"]
    assert (finding.state, finding.found) == ("ok", "hidden by CUDA_VISIBLE_DEVICES: training is on the CPU")


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bfloat16_is_noted(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    finding = _found("kernels", kernels.kernels)["bfloat16"]
    assert finding.state == ("ok" if native else "note")
    assert ("precision=fp32" in finding.advice) == (not native)


@pytest.mark.parametrize("wrong", ["gradient", "product"])
def test_kernels_that_compute_wrongly_do_not_work(wrong, monkeypatch):
    if wrong == "gradient":
        compute = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            torch.nn.functional, "scaled_dot_product_attention",
            lambda query, key, value, **options: compute(query, key, value, **options) * math.inf,
        )  # fmt: skip
        finding = _found("kernels", kernels.kernels)["attention kernels"]
        assert finding.found.endswith("ArithmeticError: its gradient is not finite")
    else:
        monkeypatch.setattr(torch, "autocast", lambda device, dtype: contextlib.nullcontext())
        finding = _found("kernels", kernels.kernels)["bfloat16"]
        assert finding.found.endswith("ArithmeticError: autocast does not multiply in it")
    assert finding.state == "broken"


@pytest.mark.parametrize("right", [True, False])
def test_what_is_compiled_must_compute_the_same(right, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch, "compile", lambda function: lambda values: function(values) + (0 if right else 1))
    finding = _found("compiling", kernels.compiling)["torch.compile"]
    assert finding.found.startswith("works" if right else "fails: ArithmeticError: the compiled function computes")
    assert finding.state == ("ok" if right else "note")


def test_a_hub_that_answers_is_reachable(monkeypatch):
    import natattn.data.hub

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(natattn.data.hub, "hub_reachable", lambda: True)
    finding = _found("services", services.services)["Hugging Face Hub"]
    assert (finding.state, finding.found) == ("ok", "reachable")


def test_large_caches_are_looked_at_in_part(monkeypatch, tmp_path):
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for kind in ("images", "tokens"):
        (cache_root() / kind / "0123").mkdir(parents=True)
        (cache_root() / kind / "0123" / "meta.json").write_text("{")
    found = _found("storage", storage.storage)
    assert found["cache entries"].found.startswith("2 bytes in 2 files")
    assert found["damaged entries"].found.startswith("2, such as")
    monkeypatch.setattr(storage, "_MOST_FILES", 1)
    monkeypatch.setattr(storage, "_MOST_HASHED", 1)  # tokens come first
    found = _found("storage", storage.storage)
    assert found["cache entries"].found.startswith("more than 1 bytes in 1 files")
    assert found["damaged entries"].found.startswith("1, such as")


def test_a_whole_entry_of_images_is_not_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for number in range(4):
        Image.new("L", (4, 4), 40 * number).save(tmp_path / "pictures" / "a" / f"{number}.png")
    (tmp_path / "pictures" / "b").mkdir()
    for number in range(4):
        Image.new("L", (4, 4), 40 * number + 1).save(tmp_path / "pictures" / "b" / f"{number}.png")
    settings = [
        "task=vision",
        "data=image_folder",
        f"data.train={tmp_path / 'pictures'}",
        "data.image_size=4",
        "data.shift=1",
    ]
    open_task(config.settings_of(config.compose(settings)), progress=False)
    assert list((cache_root() / "images").iterdir())
    assert "damaged entries" not in _found("storage", storage.storage)


def test_a_checkout_that_is_not_installed_is_examined(monkeypatch):
    def version(name: str) -> str:
        if name == "natattn":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    installed = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    found = _found("versions", versions.versions)
    assert (found["natattn"].state, found["natattn"].found) == ("ok", "a checkout that is not installed")


def test_without_packaging_versions_are_not_compared(monkeypatch):
    monkeypatch.setattr(versions, "_required", lambda: (">=3.99", []))
    _without(monkeypatch, "packaging.specifiers")
    assert _found("versions", versions.versions)["Python"].state == "ok"


def test_the_doctors_run_must_finish_and_leaves_the_environment_as_it_was(monkeypatch):
    import natattn.training.run

    monkeypatch.delenv("NATATTN_CACHE")
    monkeypatch.setattr(natattn.training.run, "train", lambda settings, folder: SimpleNamespace(outcome="diverged"))
    (finding,) = examined("training", trial.training)
    assert finding.state == "broken"
    assert "a run of 40 small steps ended with: diverged" in finding.found
    assert "NATATTN_CACHE" not in os.environ


def test_who_waits_is_told_how_long(monkeypatch, capsys):
    monkeypatch.setattr("natattn.doctor.examine", lambda quick: [])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["doctor", "quick=true"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["doctor"]) == 0
    assert "half a minute" in capsys.readouterr().err
