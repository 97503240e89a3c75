"""The picture of a screening: loss over learning rate, and differences to one optimizer over the steps.

    python scripts/screening_plot.py docs/results/runs.jsonl --tuning-seeds 0 --seeds 1,2,3,4,5 --against muon

Left, for every optimizer, its last loss at each learning rate. Right, for every optimizer that was run on all the
seeds, its loss minus the other's on the same seed, mean and 95 % t interval at each evaluation. Writes
docs/images/optimizers.png.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from screening_table import Run, read_run

from natattn.analysis.runs import find_runs
from natattn.errors import UserError
from natattn.report.figures import COLOURS, MARKERS, drawn
from natattn.statistics.paired import mean, t_interval

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "optimizers.png"
SHOWN_LOSSES = 1.35  # times the least: what lies above would flatten the rest


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--tuning-seeds", default="0")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--steps", type=int, default=600, help="runs of another length are passed over")
    parser.add_argument("--against", default="muon")
    options = parser.parse_args()
    tuning, seeds = ([int(s) for s in text.split(",")] for text in (options.tuning_seeds, options.seeds))
    try:
        found = [run for folder in find_runs(options.folders) if (run := read_run(folder))]
    except UserError as error:
        print(f"screening_plot: {error}", file=sys.stderr)
        return 2
    runs = [run for run in found if run.steps[-1] == options.steps]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
        draw_rates(left, [run for run in runs if run.seed in tuning and " " not in run.variant])
        draw_differences(right, [run for run in runs if run.seed in seeds], set(seeds), options.against)

    PICTURE.write_bytes(drawn(draw, (11.0, 4.6)))
    return 0


def draw_rates(panel: Any, runs: list[Run]) -> None:
    """Last losses over the rate of hidden matrices; what is far above the best is left out."""
    curves: dict[str, dict[float, float]] = defaultdict(dict)
    for run in runs:
        curves[run.variant][run.rate] = run.final
    least = min(min(curve.values()) for curve in curves.values())
    order = sorted(curves, key=lambda name: min(curves[name].values()))
    shown = [name for name in order if min(curves[name].values()) < SHOWN_LOSSES * least]
    for place, name in enumerate(shown):
        rates = sorted(curves[name])
        style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        panel.plot(rates, [curves[name][rate] for rate in rates], label=name, markersize=4, linewidth=1.1,
                   linestyle="-" if place < len(COLOURS) else "--", **style)  # fmt: skip
    panel.set(xscale="log", xlabel="learning rate of hidden matrices", ylabel="last loss, nats/byte, one seed",
              ylim=(0.99 * least, SHOWN_LOSSES * least))  # fmt: skip
    rates = sorted({run.rate for run in runs if run.rate < 0.1})
    panel.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=7)
    panel.minorticks_off()
    panel.set_xlim(0.8 * rates[0], 1.25 * rates[-1])
    panel.legend(fontsize=6.5, frameon=False, ncols=2, loc="upper center")


def draw_differences(panel: Any, runs: list[Run], seeds: set[int], against: str) -> None:
    """Differences on the same seed, over the steps."""
    by_variant: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        by_variant[run.variant][run.seed] = run
    whole = {name: members for name, members in by_variant.items() if members.keys() == seeds}
    reference = whole.pop(against)
    whole = {name: m for name, m in whole.items() if next(iter(m.values())).steps == reference[min(seeds)].steps}
    order = sorted(whole, key=lambda name: mean([run.final for run in whole[name].values()]))
    close = [n for n in order if abs(mean([whole[n][s].final - reference[s].final for s in seeds])) < 0.2]
    for place, name in enumerate(close):
        steps = reference[min(seeds)].steps[1:]
        pairs = [[whole[name][s].losses[i] - reference[s].losses[i] for s in seeds] for i in range(1, len(steps) + 1)]
        centres, halves = np.array([t_interval(values) for values in pairs]).T
        x = np.array(steps) + 4 * (place - len(close) / 2)  # beside each other
        panel.errorbar(x, centres, halves, label=name, color=COLOURS[place % len(COLOURS)], capsize=2, linewidth=1.1,
                       marker=MARKERS[place % len(MARKERS)], markersize=4)  # fmt: skip
    panel.axhline(0, color="#000000", linewidth=0.8)
    panel.set(xlabel="steps", ylabel=f"loss minus {against}'s on the same seed, nats/byte")
    panel.legend(fontsize=7, frameon=False, loc="lower left")


if __name__ == "__main__":
    sys.exit(main())
