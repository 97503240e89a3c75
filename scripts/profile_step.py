"""Profile training steps function by function, or count calls of natattn's functions in a step.

    python scripts/profile_step.py                                   # nano, natural + aif next to standard + AdamW
    python scripts/profile_step.py size=pico optim=natural_muon --steps 50 --sort cumulative
    python scripts/profile_step.py size=pico --calls

Accepts any override of `natattn train`. Times include the overhead of cProfile, which is largest for functions that are
called often. Writes nothing.
"""

import argparse
import cProfile
import pstats
import tempfile
from collections import Counter
from pathlib import Path

from bench_train import make_run, prepared

import natattn
from natattn.training.build import build_arms
from natattn.training.train import step

WARM_UP = 5


def main() -> None:
    """Profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sort", choices=["tottime", "cumulative"], default="tottime")
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--calls", action="store_true", help="count calls of natattn's functions instead of time")
    options = parser.parse_intermixed_args()
    settings, task = prepared(*options.overrides, "train.steps=100000", "tracker=off")
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(settings, build_arms(settings, task), Path(folder))
        for _ in range(WARM_UP):
            step(run)
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(options.steps):
            step(run)
        profile.disable()
    statistics = pstats.Stats(profile)
    if options.calls:
        print_calls(statistics, options.steps, options.lines)
        return
    seconds = statistics.total_tt  # type: ignore[attr-defined]
    print(f"{1000 * seconds / options.steps:.1f} ms per step over {options.steps} steps")
    statistics.strip_dirs().sort_stats(options.sort).print_stats(options.lines)


def print_calls(statistics: pstats.Stats, steps: int, lines: int) -> None:
    """Print the number of natattn function calls per step, then the functions that are called most."""
    package = Path(natattn.__file__).parent
    counts: Counter[str] = Counter()
    for (file, _, function), (_, calls, *_) in statistics.stats.items():  # type: ignore[attr-defined]
        if Path(file).is_relative_to(package):
            counts[f"{Path(file).relative_to(package)}:{function}"] += calls
    print(f"{counts.total() / steps:.0f} natattn calls per step")
    for name, calls in counts.most_common(lines):
        print(f"{calls / steps:8.1f}  {name}")


if __name__ == "__main__":
    main()
