"""The benchmark suite: every ratio of docs/performance.md, measured on this machine, in one go.

    python -m pip install -e ".[bench]"
    python scripts/bench.py                                  # all of it, about 40 minutes on two cores
    python scripts/bench.py --only floor optim               # parts of it
    python scripts/bench.py --device cuda --output docs/performance/h200.txt

Every part is a script of its own (scripts/bench_PART.py) that compares programs side by side in one process. The
machine should have nothing else to do; how busy it was before each part is printed. With --output the results are also
written to a file, headed by date, versions, commit and device.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from natattn.training.environment import processor

HERE = Path(__file__).parent
CUDA = ["--device", "cuda"]
# What each part answers, and the options that it has on the CPU and on a GPU; None where it has nothing to say there.
PARTS: dict[str, tuple[str, list[str], list[str] | None]] = {
    "floor": (
        "our loop against a plain GPT's forward, backward and update; two arms; natural + aif",
        [],
        [*CUDA, "--repeats", "5", "--steps", "10"],
    ),
    "train": ("our loop against transformers' Trainer", [], None),
    "attention": ("observing attention, by length", [], [*CUDA, "--repeats", "5"]),
    "optim": ("whole steps against Muon's", [], CUDA),
    "seeds": ("several seeds as one computation", [], ["train.device=cuda", "--repeats", "5"]),
    "growth": ("how cost grows with context, width and arms", [], CUDA),
    "startup": ("start-up, time to the first step, data pipeline", [], None),
}


def heading(device: str) -> str:
    """What the numbers belong to."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    cpu = f"{processor() or platform.machine()}, {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if device == "cuda" else cpu
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {where}\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"commit {commit.stdout.strip() or 'unknown'}"
    )


def run(part: str, device: str) -> str:
    """A part's output, shown as it comes."""
    _, on_cpu, on_gpu = PARTS[part]
    options = on_cpu if device == "cpu" else on_gpu or []
    title = f"\n{part}: {PARTS[part][0]} (load before: {os.getloadavg()[0]:.1f})"
    print(title, flush=True)
    lines = [title]
    command = [sys.executable, str(HERE / f"bench_{part}.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(f"  {line.rstrip()}")
    if process.returncode:
        lines.append(f"  failed with exit code {process.returncode}")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here; valid: cpu")
    parts = [part for part in options.only if options.device == "cpu" or PARTS[part][2] is not None]
    head = heading(options.device)
    print(head)
    results = [head]
    for part in parts:
        results.append(run(part, options.device))
        if options.output is not None:  # after every part: a suite that is cut short keeps what it has
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text("\n".join(results) + "\n", encoding="utf-8")
    return 1 if any("failed with exit code" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
