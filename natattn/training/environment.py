"""environment.json: the machine, the packages and the code that a run was trained with."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from natattn.storage.atomic import conf_folder, write_json
from natattn.storage.documents import read_object

ENVIRONMENT = "environment.json"
EARLIER = "earlier_sittings"
PACKAGES = ("natattn", "torch", "transformers", "tokenizers", "datasets", "numpy", "hydra-core", "wandb", "safetensors")
# Environment variables that choose kernels, number of threads or rounding.
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "KMP_DETERMINISTIC_REDUCTION",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "PYTHONHASHSEED",
)


def environment_of(device: torch.device) -> dict[str, Any]:
    """Return versions, device, threads, arithmetic switches and source code of this process."""
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "processor": processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git_commit": _git_commit(),
        "source": source_hash(),
    }


def write_environment(folder: Path, device: torch.device) -> None:
    """Save the present environment; keep those of earlier sessions of the run that differ."""
    now = environment_of(device)
    before = read_environment(folder)
    earlier = before.pop(EARLIER, [])
    if not isinstance(earlier, list):
        earlier = []  # untrusted file
    if before and before != now:
        earlier = [*earlier, before]
    write_json(folder / ENVIRONMENT, now | ({EARLIER: earlier} if earlier else {}))


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what ``write_environment`` wrote; empty if it cannot be read."""
    return read_object(folder / ENVIRONMENT)


def processor() -> str | None:
    """Return the name of the CPU, by which libraries choose kernels."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or None


@cache
def source_hash() -> str:
    """Return the SHA-256 of natattn's code and configuration, which distinguishes modified checkouts of a commit."""
    digest = hashlib.sha256()
    for root, pattern in ((Path(__file__).resolve().parents[1], "*.py"), (conf_folder(), "*.yaml")):
        for path in sorted(root.rglob(pattern)):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of this checkout, with "+changes" if it is modified; None outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
