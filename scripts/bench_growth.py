"""How the cost of a training step grows with context, width and number of arms: power laws with fitted exponents.

    python scripts/bench_growth.py
    python scripts/bench_growth.py --device cuda

Of each variable all sizes take turns, step by step, so that a busy moment hits them alike. The exponent is the slope of
log seconds (or of log peak memory, on CUDA) against log size, with a 95 % t interval over the repeats. Arms are counted
one to four: standard + AdamW, and natural with aif, muon and natural_muon. Nothing is written.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_train import make_run, prepared, take_turns

from natattn.statistics.paired import t_interval
from natattn.training.arm import Arm
from natattn.training.build import build_arms
from natattn.training.run import Run
from natattn.training.train import step

GRIDS = {
    "cpu": {"context": (64, 128, 256, 512), "width": (64, 128, 256, 512)},
    "cuda": {"context": (1024, 2048, 4096, 8192, 16384), "width": (256, 512, 1024, 2048)},
}
ARMS = (("standard", "adamw"), ("natural", "aif"), ("natural", "muon"), ("natural", "natural_muon"))


def built(device: str, folder: Path, *overrides: str) -> Run:
    """A run with one arm, the natural one with aif unless the overrides say otherwise."""
    common = ("tokenizer=byte", "reference=none", "train.steps=100000", "tracker=off", f"train.device={device}")
    settings, task = prepared(*common, *overrides)
    return make_run(settings, build_arms(settings, task), folder)


def growth(name: str, runs: dict[int, Run], repeats: int, steps: int) -> None:
    """Print seconds per step by size, and the fitted exponent."""
    on_gpu = next(iter(runs.values())).device.type == "cuda"
    resting = torch.cuda.memory_allocated() if on_gpu else 0  # of the models of all sizes, which are there together
    ways = [partial(step, run) for run in runs.values()]
    found = take_turns(ways, repeats, steps, next(iter(runs.values())).device)
    times = dict(zip(runs, zip(*found, strict=True), strict=True))
    sizes = list(runs)
    slopes = [np.polyfit(np.log(sizes), np.log([times[size][n] for size in sizes]), 1)[0] for n in range(repeats)]
    mean, half = t_interval([float(slope) for slope in slopes])
    shown = ", ".join(f"{size}: {1e3 * statistics.median(times[size]):.1f} ms" for size in sizes)
    print(f"{name}: {shown}; seconds ∝ {name}^{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]", flush=True)
    if on_gpu:
        memory = [run.arms[0].peak_memory - resting for run in runs.values()]
        slope = np.polyfit(np.log(sizes), np.log(memory), 1)[0]
        each = ", ".join(f"{size}: {bytes_ / 2**20:.0f} MiB" for size, bytes_ in zip(sizes, memory, strict=True))
        print(f"  peak memory of a step above the models': {each}; ∝ {name}^{slope:.2f}", flush=True)


def with_arms(device: str, folder: Path, count: int) -> Run:
    """A run with the first ``count`` of the arms; they need not start alike to cost what they cost."""
    arms: list[Arm] = []
    for model, optim in ARMS[:count]:
        run = built(device, folder, f"model={model}", f"optim={optim}")
        run.arms[0].name = f"{model}_{optim}"
        arms.extend(run.arms)
    run.arms = arms
    return run


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=GRIDS, default="cpu")
    parser.add_argument("--repeats", type=int, default=5, choices=range(5, 11))
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")
    grids = GRIDS[options.device]
    precision = ("precision=bf16",) if options.device == "cuda" else ()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fixed = ("size.n_layer=2", "size.n_head=4", "train.batch_size=4", *precision)
        contexts = {
            length: built(options.device, folder, *fixed, "size.n_embd=128", f"size.context={length}")
            for length in grids["context"]
        }
        growth("context", contexts, options.repeats, options.steps)
        del contexts
        widths = {
            width: built(options.device, folder, *fixed, f"size.n_embd={width}", "size.context=128")
            for width in grids["width"]
        }
        growth("width", widths, options.repeats, options.steps)
        del widths
        arms = {count: with_arms(options.device, folder, count) for count in (1, 2, 3, 4)}
        growth("arms", arms, options.repeats, options.steps)


if __name__ == "__main__":
    main()
