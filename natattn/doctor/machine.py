"""What there is to compute with: processor, threads, memory, GPUs."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from natattn.doctor.findings import Finding, amount

_LITTLE_MEMORY = 1 << 30  # bytes; a default run takes about half of it


def machine() -> Iterator[Finding]:
    """Processor and threads, memory, and every GPU."""
    import torch

    from natattn.training.environment import processor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    instructions = torch.backends.cpu.get_cpu_capability()
    yield Finding("processor", f"{processor() or 'unknown'}, {cores} cores for this process, {instructions}")
    threads = torch.get_num_threads()
    if threads > cores:
        advice = f"more threads than cores wait for each other: export OMP_NUM_THREADS={cores}"
        yield Finding("threads", f"{threads} on {cores} cores", "note", advice)
    else:
        yield Finding("threads", str(threads))
    yield _memory()
    yield from _gpus()


def _memory() -> Finding:
    available = _available_memory()
    if available is None:
        return Finding("memory", "unknown")
    if available < _LITTLE_MEMORY:
        return Finding("memory", f"{amount(available)} free", "note", "close other programs, or train with size=pico")
    return Finding("memory", f"{amount(available)} free")


def _available_memory() -> int | None:
    """Bytes that a new process can have without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _gpus() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            found = f"{name}, {amount(free)} free of {amount(total)}, CUDA {torch.version.cuda}"
            little = free < _LITTLE_MEMORY
            advice = "another program holds its memory; choose another GPU with CUDA_VISIBLE_DEVICES" if little else ""
            yield Finding(f"cuda:{number}", found, "note" if little else "ok", advice)
        return
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        yield Finding("GPU", "none: training is on the CPU")
    elif torch.version.cuda is None:
        advice = "install a build of torch with CUDA: pytorch.org/get-started"
        yield Finding("GPU", f"an NVIDIA driver, but torch {torch.__version__} is without CUDA", "note", advice)
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("GPU", "hidden by CUDA_VISIBLE_DEVICES: training is on the CPU")
    else:
        advice = f"run nvidia-smi; the driver must be new enough for CUDA {torch.version.cuda}"
        yield Finding("GPU", "an NVIDIA driver, but torch finds no CUDA device", "broken", advice)
