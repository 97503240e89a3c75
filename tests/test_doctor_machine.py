"""What the doctor finds of the machine, its kernels and the services that it talks to."""

import contextlib
import errno
import math
import shutil
from pathlib import Path

import pytest
import torch
from findings import found_of

from natattn.doctor import kernels, machine, services


def test_an_address_of_wandb_that_is_none_is_a_finding(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:password@[::1")
    found = found_of("services", services.services)
    assert "services" not in found
    assert found["wandb"].state == "broken"
    assert "WANDB_BASE_URL" in found["wandb"].found
    assert "WANDB_BASE_URL" in found["wandb"].advice
    assert "password" not in repr(found["wandb"])


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
    finding = found_of("services", services.services)["wandb"]
    assert finding.state == "ok"
    assert finding.found.startswith("not logged in" if where == "nowhere" else "logged in")
    assert "abcdef" not in repr(finding)


def test_the_hub_is_asked_only_where_that_is_allowed(monkeypatch):
    import natattn.data.hub

    asked = []
    monkeypatch.setattr(natattn.data.hub, "hub_reachable", lambda: bool(asked.append(1)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in found_of("services", services.services)["Hugging Face Hub"].found
    assert not asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    finding = found_of("services", services.services)["Hugging Face Hub"]
    assert asked
    assert finding.state == "note"
    assert "data=stdlib" in finding.advice


def test_too_many_threads_and_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = found_of("machine", machine.machine)
    assert found["threads"].state == "note"
    assert "OMP_NUM_THREADS=" in found["threads"].advice
    assert found["GPU"].state == "note"
    assert "without CUDA" in found["GPU"].found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert found_of("machine", machine.machine)["GPU"].state == "broken"


def test_kernels_that_fail_are_told(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no kernel\nand more lines")

    monkeypatch.setattr(kernels, "_attend", fail)
    monkeypatch.setattr(kernels, "_multiply_in_bfloat16", fail)
    found = found_of("kernels", kernels.kernels)
    assert {finding.state for finding in found.values()} == {"broken"}
    assert "RuntimeError: no kernel" in found["attention kernels"].found
    monkeypatch.setattr(kernels, "_compile", fail)
    assert found_of("compiling", kernels.compiling)["torch.compile"].state == "note"


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU another compiler is needed")
@pytest.mark.parametrize(("chosen", "said"), [(None, "no C++ compiler"), ("missing++", "missing++")])
def test_without_a_compiler(chosen, said, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False) if chosen is None else monkeypatch.setenv("CXX", chosen)
    finding = found_of("compiling", kernels.compiling)["torch.compile"]
    assert finding.state == "note"
    assert said in finding.found
    assert "g++" in finding.advice


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
    finding = found_of("machine", machine.machine)["memory"]
    assert (finding.state, finding.found) == (state, said)


def test_gpus_are_told_with_their_free_memory(monkeypatch):
    free = {0: 20 << 30, 1: 1 << 20}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 40 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    found = found_of("machine", machine.machine)
    assert found["cuda:0"].found.startswith("GPU 0, 20.0 GiB free of 40.0 GiB")
    assert (found["cuda:0"].state, found["cuda:1"].state) == ("ok", "note")
    assert "CUDA_VISIBLE_DEVICES" in found["cuda:1"].advice


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_no_fault(hidden, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    finding = found_of("machine", machine.machine)["GPU"]
    assert (finding.state, finding.found) == ("ok", "hidden by CUDA_VISIBLE_DEVICES: training is on the CPU")


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bfloat16_is_noted(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    finding = found_of("kernels", kernels.kernels)["bfloat16"]
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
        finding = found_of("kernels", kernels.kernels)["attention kernels"]
        assert finding.found.endswith("ArithmeticError: its gradient is not finite")
    else:
        monkeypatch.setattr(torch, "autocast", lambda device, dtype: contextlib.nullcontext())
        finding = found_of("kernels", kernels.kernels)["bfloat16"]
        assert finding.found.endswith("ArithmeticError: autocast does not multiply in it")
    assert finding.state == "broken"


@pytest.mark.parametrize("right", [True, False])
def test_what_is_compiled_must_compute_the_same(right, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch, "compile", lambda function: lambda values: function(values) + (0 if right else 1))
    finding = found_of("compiling", kernels.compiling)["torch.compile"]
    assert finding.found.startswith("works" if right else "fails: ArithmeticError: the compiled function computes")
    assert finding.state == ("ok" if right else "note")


def test_a_hub_that_answers_is_reachable(monkeypatch):
    import natattn.data.hub

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(natattn.data.hub, "hub_reachable", lambda: True)
    finding = found_of("services", services.services)["Hugging Face Hub"]
    assert (finding.state, finding.found) == ("ok", "reachable")
