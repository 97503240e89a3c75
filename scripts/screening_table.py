"""The table of a screening: for every optimizer its best rate, and how it went there.

    python scripts/screening_table.py outputs/screening > docs/results/screening_table.md

Reads the runs that ``screen_optimizers.sh`` left, folders named OPTIMIZER_RATE_seedN: the last and the first
validation loss, in nats per byte, and seconds per step. With more than one seed, the mean over seeds and its standard
error; the rate is chosen by that mean. Nothing is written.
"""

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from natattn.tracking.metrics_file import read_metrics

FOLDER = re.compile(r"(?P<optimizer>.+)_(?P<rate>[0-9.e-]+)_seed(?P<seed>\d+)$")


@dataclass(frozen=True)
class Run:
    """What the table needs of one run; losses are in nats per byte, by step."""

    losses: Mapping[int, float]
    seconds_per_step: float


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    runs: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    folder = parser.parse_args().folder
    for path in sorted(folder.iterdir()):
        match = FOLDER.match(path.name)
        if match and (run := read_run(path)):
            runs[match["optimizer"]][match["rate"]].append(run)
    if not runs:
        parser.error(f"{folder}: no finished runs of a screening")
    evaluated = sorted(
        {step for rates in runs.values() for seeds in rates.values() for r in seeds for step in r.losses}
    )
    first, last = evaluated[0], evaluated[-1]
    print(f"| optimizer | best rate | at step {first} | at step {last} | s/step | finals of the rates |")
    print("|---|---|---|---|---|---|")
    for name, rates in sorted(runs.items(), key=lambda item: min(final(seeds, last) for seeds in item[1].values())):
        best = min(rates, key=lambda rate: final(rates[rate], last))
        seeds = rates[best]
        others = ", ".join(f"{rate}: {final(rates[rate], last):.3f}" for rate in sorted(rates, key=float))
        seconds = statistics.median(run.seconds_per_step for run in seeds)
        print(f"| {name} | {best} | {shown(seeds, first)} | {shown(seeds, last)} | {seconds:.3f} | {others} |")


def read_run(path: Path) -> Run | None:
    """A run that has ended; None for one that is under way."""
    facts = json.loads((path / "run.json").read_text()) if (path / "run.json").is_file() else {}
    if facts.get("status") not in ("finished", "diverged"):
        return None
    (arm,) = facts["arms"]
    metrics = read_metrics(path / "metrics.jsonl")
    steps, values, _ = metrics.select(arm=arm, name="validation/loss")
    losses = {int(step): float(value) for step, value in zip(steps, values, strict=True) if step}
    steps, seconds, _ = metrics.select(arm=arm, name="time/train_seconds")
    return Run(losses, float(seconds[-1] / steps[-1]))


def final(seeds: list[Run], last: int) -> float:
    """Mean last loss over seeds; infinite where a run diverged."""
    return statistics.mean(run.losses.get(last, float("inf")) for run in seeds)


def shown(seeds: list[Run], step: int) -> str:
    """Mean over seeds, with its standard error where there are several."""
    values = [run.losses[step] for run in seeds if step in run.losses]
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "—"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
