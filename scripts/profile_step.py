"""Where the time of training steps goes, function by function, under cProfile.

    python scripts/profile_step.py                                   # nano, natural + aif beside standard + AdamW
    python scripts/profile_step.py size=pico optim=natural_muon --steps 50 --sort cumulative

Any override of `natattn train` may follow. The profiler's own cost is in every figure, most of all in functions that
are called often. Nothing is written.
"""

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path

from bench_train import make_loop, prepared

from natattn.training.build import build_arms

WARM_UP = 5


def main() -> None:
    """Profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sort", choices=["tottime", "cumulative"], default="tottime")
    parser.add_argument("--lines", type=int, default=30)
    options = parser.parse_intermixed_args()
    settings, task = prepared(*options.overrides, "train.steps=100000", "tracker=off")
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(settings, build_arms(settings, task), Path(folder))
        for _ in range(WARM_UP):
            loop.advance()
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(options.steps):
            loop.advance()
        profile.disable()
    statistics = pstats.Stats(profile).strip_dirs().sort_stats(options.sort)
    seconds = statistics.total_tt  # type: ignore[attr-defined]
    print(f"{1000 * seconds / options.steps:.1f} ms per step over {options.steps} steps")
    statistics.print_stats(options.lines)


if __name__ == "__main__":
    main()
