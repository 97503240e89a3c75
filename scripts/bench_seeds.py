"""What training several seeds as one computation costs, against one seed alone (docs: protocol 9).

    python scripts/bench_seeds.py
    OMP_NUM_THREADS=2 python scripts/bench_seeds.py --optimizers adamw,natural_muon size=nano

Seconds per training step of S stacked seeds over those of one seed trained alone: the two take turns in one process,
and which of them goes first is swapped every repeat. Evaluations and checkpoints, which every seed makes for itself,
are not in it. Every ratio has a 95 % t interval over the repeats. Nothing is written.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from natattn.config import compose as config
from natattn.stacked.arm import StackedArm
from natattn.statistics.paired import t_interval
from natattn.tasks import BatchSlice, LanguageTask
from natattn.training.arm import Arm
from natattn.training.build import build_arms, open_task
from natattn.training.settings import RunSettings

OVERRIDES = ("size=pico", "train.batch_size=4", "reference=none", "tracker=off", "train.steps=100000")


def settings_of(optimizer: str, overrides: list[str]) -> RunSettings:
    """Of a run with only the candidate."""
    return config.settings_of(config.compose([*OVERRIDES, f"optim={optimizer}", *overrides]))


def arm_of(settings: RunSettings, task: LanguageTask, seed: int) -> tuple[Arm, list[torch.Tensor]]:
    """The candidate of one seed, and enough of its batches to go round."""
    own = settings.model_copy(update={"seed": seed})
    own_task = replace(task, seed=seed)
    arms = build_arms(own, own_task)
    return arms[-1], [own_task.batch(step, BatchSlice()).to(own.device) for step in range(16)]


def steppers(settings: RunSettings, task: LanguageTask, seeds: int) -> tuple[Callable[[int], None], ...]:
    """One step of one seed alone, and one of all seeds together."""
    alone, batches = arm_of(settings, task, 0)
    members = [arm_of(settings, task, seed) for seed in range(seeds)]
    joint = StackedArm([arm for arm, _ in members])
    together = [torch.cat(parts) for parts in zip(*(found for _, found in members), strict=True)]

    def one(step: int) -> None:
        alone.train_step([batches[step % len(batches)]], step, 1.0)

    def several(step: int) -> None:
        joint.train_step([together[step % len(together)]], step, 1.0)

    return one, several


def seconds(
    stepper: Callable[[int], None], first: int, steps: int, device: torch.device, clock: Callable[[], float]
) -> float:
    """Per step."""
    wait(device)
    start = clock()
    for step in range(first, first + steps):
        stepper(step)
    wait(device)
    return (clock() - start) / steps


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    settings: RunSettings,
    task: LanguageTask,
    seeds: int,
    repeats: int,
    steps: int,
    clock: Callable[[], float],
) -> None:
    """Print one optimizer's ratio."""
    pair = steppers(settings, task, seeds)
    times: list[tuple[float, float]] = []
    for repeat in range(-1, repeats):
        order = (0, 1) if repeat % 2 else (1, 0)
        found = {index: seconds(pair[index], (repeat + 1) * steps, steps, settings.device, clock) for index in order}
        if repeat >= 0:  # the first round is warm-up
            times.append((found[0], found[1]))
    mean, half = t_interval([several / one for one, several in times])
    one, several = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{settings.optim.name:<14} one seed {one:7.2f} ms/step, {seeds} seeds {several:7.2f} ms/step:"
        f" ratio {mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*", help="key=value, as of natattn train")
    parser.add_argument("--optimizers", default="adamw,aif,muon,natural_muon", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7, choices=range(5, 51))
    parser.add_argument("--steps", type=int, default=20, help="a multiple of 10 holds whole rounds of captures")
    parser.add_argument(
        "--processor", action="store_true", help="count processor seconds of all threads, where others use the machine"
    )
    options = parser.parse_args()
    settings = settings_of(options.optimizers.split(",")[0], options.overrides)
    task = open_task(settings)
    assert isinstance(task, LanguageTask)
    device = torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else platform.machine()
    size, batch = settings.size, settings.train.batch_size
    print(
        f"torch {torch.__version__}, {settings.device} ({device}), {torch.get_num_threads()} threads; {size.name} "
        f"{size.n_layer}×{size.n_embd}×{size.n_head}, vocabulary {task.corpus.tokenizer.vocab_size}, "
        f"context {size.context},"
        f" batch {batch}, {options.repeats} repeats of {options.steps} steps,"
        f" {'processor' if options.processor else 'wall'} seconds"
    )
    clock = time.process_time if options.processor else time.perf_counter
    for name in options.optimizers.split(","):
        measure(settings_of(name, options.overrides), task, options.seeds, options.repeats, options.steps, clock)


if __name__ == "__main__":
    main()
