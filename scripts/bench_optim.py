"""What an optimizer costs: the time of a whole training step, relative to Muon's, side by side in one process.

    python scripts/bench_optim.py                       # natural_muon and fisher_muon, micro, batch 16
    python scripts/bench_optim.py soap whitened_muon
    python scripts/bench_optim.py --device cuda         # GPT-2 124M, context 1024, bf16, compile, batch 16

The reference arm is the standard model under ``torch.optim.Muon``; both arms take turns step by step on the same
batches. A repeat is a multiple of ten steps: two captures of factors and one refresh of their roots. Ratios are of
seconds per step, with a 95 % t interval over the repeats. Nothing is written.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import torch
from bench_train import interleaved

from natattn.statistics.paired import t_interval

SIZES = {
    "cpu": ("size=micro", "precision=fp32"),
    "cuda": ("size=small", "precision=bf16", "train.compile=true"),
}


def main() -> None:
    """Measure every optimizer that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("optimizers", nargs="*", default=["natural_muon", "fisher_muon"])
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--repeats", type=int, default=5, choices=range(5, 11))
    parser.add_argument("--steps", type=int, default=10, choices=range(10, 101, 10))
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}; {', '.join(SIZES[options.device])}")
    for name in options.optimizers:
        overrides = ("model=natural", f"optim={name}", "reference=muon", "train.batch_size=16", *SIZES[options.device])
        with tempfile.TemporaryDirectory() as folder:
            pairs, _ = interleaved(
                options.repeats, options.steps, Path(folder), *overrides, f"train.device={options.device}"
            )
        mean, half = t_interval([candidate / reference for candidate, reference in pairs])
        candidate, reference = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{name} / muon: {candidate:.0f} / {reference:.0f} ms per step,"
            f" ratio {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] over {len(pairs)} repeats",
            flush=True,
        )


if __name__ == "__main__":
    main()
