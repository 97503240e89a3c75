"""What is waited for before training: start-up, time to the first step, and the data pipeline.

    python scripts/bench_startup.py

`natattn --help` and a bare interpreter take turns; so do a default run of one step, with warm caches, and the same
imports alone. Then the pipeline: text to tokens with an empty cache (bytes of text per second), and tokens to batches
(bytes of tokens per second, beside reading the same memory once). Ratios with a 95 % t interval over the repeats.
Nothing is written but temporary files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from natattn.config import compose as config
from natattn.data import Batches, prepare
from natattn.statistics.paired import t_interval

IMPORTS = "import torch, transformers, hydra, pydantic; from transformers import GPT2LMHeadModel"
# The command as it is, in a process that ends with its first step.
FIRST_STEP = """
import os, sys
from natattn.cli.main import main
from natattn.training import train

step = train.step

def first(run):
    step(run)
    os._exit(0)

train.step = first
main(sys.argv[1:])
sys.exit("the run ended before its first step")
"""


def wall(command: list[str], **environment: str) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    return time.perf_counter() - start


def until_first_step(folder: Path) -> float:
    """Seconds from the command to the end of the first step of the default run, its first evaluation included."""
    return wall([sys.executable, "-c", FIRST_STEP, "train", "tracker=off", f"hydra.run.dir={folder}"])


def pair(name: str, times: list[tuple[float, float]]) -> None:
    """Print medians and their ratio."""
    mean, half = t_interval([first / second for first, second in times])
    first, second = (float(np.median(column)) for column in zip(*times, strict=True))
    print(f"{name}: {first:.2f} / {second:.2f} s, ratio {mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]", flush=True)


def pipeline(repeats: int) -> None:
    """Bytes per second of preparing and of reading."""
    settings = config.settings_of(config.compose(["tracker=off"]))
    corpus = prepare(settings.data, settings.tokenizer)
    text_bytes = sum(split.byte_count for split in (corpus.train, corpus.validation))
    rates = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["NATATTN_CACHE"] = cache
            start = time.perf_counter()
            prepare(settings.data, settings.tokenizer, progress=False)
            rates.append(text_bytes / 1e6 / (time.perf_counter() - start))
            del os.environ["NATATTN_CACHE"]
    mean, half = t_interval(rates)
    print(f"text to tokens, empty cache: {mean:.1f} [{mean - half:.1f}, {mean + half:.1f}] MB/s of text", flush=True)
    batches = Batches(corpus.train, 64, 128, 0, "random")
    times = []
    for repeat in range(repeats):
        start = time.perf_counter()
        size = sum(batches.batch(200 * repeat + step).nbytes for step in range(200))
        middle = time.perf_counter()
        block = np.zeros(size, dtype=np.uint8)
        block += 1
        times.append((middle - start, time.perf_counter() - middle, size))
    rates = [size / 1e6 / ours for ours, _, size in times]
    mean, half = t_interval(rates)
    print(f"tokens to batches of 64 × 128: {mean:.0f} [{mean - half:.0f}, {mean + half:.0f}] MB/s of int64", flush=True)
    pair("  the same / filling as much memory", [(ours, fill) for ours, fill, _ in times])


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, choices=range(5, 26))
    options = parser.parse_args()
    interpreter = [sys.executable, "-c", "import argparse, importlib.metadata"]
    command = [sys.executable, "-m", "natattn", "--help"]
    pair("natattn --help / a bare interpreter", [(wall(command), wall(interpreter)) for _ in range(options.repeats)])
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for repeat in range(-1, options.repeats):
            found = until_first_step(Path(folder) / f"run{repeat}"), wall([sys.executable, "-c", IMPORTS])
            if repeat >= 0:  # the first fills the caches
                times.append(found)
        pair("default run to its first step / its imports", times)
    pipeline(options.repeats)


if __name__ == "__main__":
    main()
