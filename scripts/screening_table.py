"""Tables of a screening, from the folders of its runs: tuning, and what the winners do on other seeds.

    python scripts/screening_table.py outputs/screening --seeds 0
    python scripts/screening_table.py outputs/screening --seeds 1,2,3 --against muon,whitened_muon

The first prints, for every optimizer, the last validation losses of all learning rates and the best. The second, with
``--against``, prints means over the seeds with standard errors, and differences to other optimizers, paired by seed,
with their 95 % t intervals (each for itself: not adjusted for their number); and when the first of them had its last
loss reached, in steps (and with ``--seconds`` in seconds), relative to its own. An optimizer whose settings are not
those of its entry of ``optim=`` is named with what differs. Losses are in nats per token, which of bytes is per byte.
Nothing is written.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natattn.analysis.runs import find_runs, read_facts, read_run_config, read_run_metrics
from natattn.errors import UserError
from natattn.optim.settings import read_settings
from natattn.statistics.paired import mean, standard_deviation, t_interval, time_to_target
from natattn.training.run_folder import flatten

OF_THE_RATE = ("learning_rate", "learning_rates.hidden")
INFINITE = float("inf")


@dataclass(frozen=True)
class Run:
    """What the tables need of one run; ``compared`` is all of its configuration but optimizer and seed."""

    variant: str
    rate: float
    seed: int
    compared: tuple[tuple[str, str], ...]
    steps: list[int]
    losses: list[float]
    seconds: list[float]  # of training, evaluations left out, at each of the steps

    @property
    def final(self) -> float:
        """Last loss; infinite for a run that diverged."""
        return self.losses[-1]

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training until the loss was at most the target."""
        step = time_to_target(self.steps, self.losses, target)
        return None if step is None else self.seconds[self.steps.index(int(step))]


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--seeds", default="0", help="comma-separated; runs with other seeds are passed over")
    parser.add_argument("--steps", type=int, default=600, help="runs of another length are passed over")
    parser.add_argument("--against", default="", help="comma-separated optimizers to take differences to")
    parser.add_argument("--seconds", action="store_true", help="also seconds: only where nothing else was running")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    try:
        found = [read_run(folder) for folder in find_runs(options.folders)]
        runs = [run for run in found if run and run.seed in seeds and run.steps[-1] == options.steps]
        if len({run.compared for run in runs}) != 1:
            said = "differ in more than optimizer and seed" if runs else "are none"
            raise UserError(f"the ended runs of seeds {options.seeds} and {options.steps} steps {said}")
        if options.against:
            print_comparison(runs, options.against.split(","), seconds=options.seconds)
        else:
            print_tuning(runs)
    except UserError as error:
        print(f"screening_table: {error}", file=sys.stderr)
        return 2
    return 0


def read_run(folder: Path) -> Run | None:
    """A run with one arm that has ended; None for others."""
    facts = read_facts(folder)
    if facts["status"] not in ("finished", "diverged") or len(facts["arms"]) != 1:
        return None
    (arm,) = facts["arms"]
    config = dict(read_run_config(folder))
    metrics = read_run_metrics(folder)
    steps, losses, _ = metrics.select(arm=arm, name="validation/loss")
    _, seconds, _ = metrics.select(arm=arm, name="time/train_seconds")
    ended = [*map(int, steps)], [*map(float, losses)], [*map(float, seconds)]
    if facts["status"] == "diverged":
        ended = [*ended[0], config["train"]["steps"]], [*ended[1], INFINITE], [*ended[2], ended[2][-1]]
    optim = config.pop("optim")
    compared = {key: str(value) for key, value in flatten(config).items() if key not in ("seed", "resume")}
    compared["fingerprint"] = facts["data"]["fingerprint"]
    rate = optim["learning_rates"].get("hidden", optim["learning_rate"])
    return Run(variant_of(optim), rate, config["seed"], tuple(sorted(compared.items())), *ended)


def variant_of(optim: dict[str, Any]) -> str:
    """Name of the entry, and what differs from it beside the rate."""
    own = flatten(optim)
    entry = flatten(read_settings(optim["name"]).model_dump(mode="json"))
    changed = [
        f"{key.removeprefix('directions.')}={value}"
        for key, value in own.items()
        if entry.get(key) != value and key not in OF_THE_RATE
    ]
    return " ".join([optim["name"], *changed])


def print_tuning(runs: list[Run]) -> None:
    """Every optimizer by its best rate."""
    variants: dict[str, dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        variants[run.variant][run.rate].append(run)
    rates = sorted({run.rate for run in runs})
    print("| optimizer | best rate | loss at it | " + " | ".join(f"{rate:g}" for rate in rates) + " |")
    print("|---" * (3 + len(rates)) + "|")
    finals = {
        name: {rate: mean([run.final for run in members]) for rate, members in by_rate.items()}
        for name, by_rate in variants.items()
    }
    for name, losses in sorted(finals.items(), key=lambda item: min(item[1].values())):
        best = min(losses, key=losses.__getitem__)
        edge = " (edge)" if best in (min(losses), max(losses)) else ""
        cells = " | ".join(f"{losses[rate]:.3f}" if rate in losses else "" for rate in rates)
        print(f"| {name} | {best:g}{edge} | {losses[best]:.3f} | {cells} |")


def print_comparison(runs: list[Run], against: list[str], *, seconds: bool) -> None:
    """Every optimizer, and its differences to some of them.

    Raises: UserError where an optimizer has two runs of one seed, or one to compare with is missing.
    """
    variants: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if run.seed in variants[run.variant]:
            raise UserError(f"{run.variant}: two runs of seed {run.seed}; choose one learning rate")
        variants[run.variant][run.seed] = run
    for name in against:
        if name not in variants:
            raise UserError(f"--against {name}: no such runs; there are {', '.join(variants)}")
    heads = ["optimizer", "rate", "seeds", "loss", *(f"minus {name}" for name in against)]
    heads += [f"steps to the loss of {against[0]}", *(("seconds to it", "ms/step") if seconds else ())]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    by_loss = sorted(variants.items(), key=lambda item: mean([run.final for run in item[1].values()]))
    for name, seeds in by_loss:
        finals = [run.final for run in seeds.values()]
        error = standard_deviation(finals) / len(finals) ** 0.5
        cells = [name, f"{next(iter(seeds.values())).rate:g}", str(len(seeds)), f"{mean(finals):.4f} ± {error:.4f}"]
        cells += [difference(seeds, variants[other]) for other in against]
        steps_to_it, seconds_to_it = times_to_target(seeds, variants[against[0]])
        step_seconds = statistics.median(run.seconds[-1] / run.steps[-1] for run in seeds.values())
        cells += [steps_to_it, *((seconds_to_it, f"{1e3 * step_seconds:.0f}") if seconds else ())]
        print("| " + " | ".join(cells) + " |")


def difference(ours: dict[int, Run], theirs: dict[int, Run]) -> str:
    """Mean difference of last losses, paired by seed, with its interval."""
    pairs = [ours[seed].final - theirs[seed].final for seed in ours.keys() & theirs.keys()]
    if ours is theirs or not pairs:
        return ""
    centre, half = t_interval(pairs)
    return f"{centre:+.4f} [{centre - half:+.4f}, {centre + half:+.4f}]"


def times_to_target(ours: dict[int, Run], theirs: dict[int, Run]) -> tuple[str, str]:
    """Steps and seconds to the other's last loss of the same seed, over the other's; how many never reached it."""
    steps, seconds, missed = [], [], 0
    for seed in ours.keys() & theirs.keys():
        target = theirs[seed].final
        step = time_to_target(ours[seed].steps, ours[seed].losses, target)
        if step is None:
            missed += 1
            continue
        steps.append(step / theirs[seed].steps[-1])
        seconds.append((ours[seed].seconds_to(target) or 0.0) / theirs[seed].seconds[-1])
    if not steps:
        return "never", "never"
    never = f", {missed} never" if missed else ""
    return f"{mean(steps):.2f}{never}", f"{mean(seconds):.2f}{never}"


if __name__ == "__main__":
    sys.exit(main())
