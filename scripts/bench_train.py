"""Our loop's throughput against the transformers ``Trainer``'s, side by side in one process (docs: protocol 9).

    python -m pip install -e ".[bench]"
    python scripts/bench_train.py

Both train the same GPT-2 nano on the same batches of 16 with AdamW, in turns. The ratio is of tokens/s, with a 95 % t
interval over the repeats. Nothing is written. What the other benchmarks share is here too.
"""

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from natattn.config import compose as config
from natattn.statistics.paired import t_interval
from natattn.tasks import BatchSlice, LanguageTask
from natattn.tracking.console import Console
from natattn.training.arm import Arm
from natattn.training.build import build_arms, open_task
from natattn.training.checkpoint import Progress
from natattn.training.run import Run
from natattn.training.run_record import new_record
from natattn.training.settings import RunSettings
from natattn.training.train import step


class Blocks(torch.utils.data.Dataset):
    """The batches of our loop, sample by sample, as the Trainer wants them (it shifts the labels itself)."""

    def __init__(self, task: LanguageTask, count: int, batch_size: int) -> None:
        self.samples = [task.batch(step, BatchSlice())[:, :-1] for step in range(count // batch_size)]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.samples) * self.batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.samples[index // self.batch_size][index % self.batch_size]
        return {"input_ids": tokens, "labels": tokens}


class StepTimes(TrainerCallback):
    """Wall time from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.marks.append(time.perf_counter())


def prepared(*overrides: str) -> tuple[RunSettings, LanguageTask]:
    """Settings and task of a run."""
    settings = config.settings_of(config.compose(list(overrides)))
    task = open_task(settings)
    assert isinstance(task, LanguageTask)
    return settings, task


def make_run(settings: RunSettings, arms: list[Arm], folder: Path) -> Run:
    """A run as `natattn train` starts it, with a console that shows nothing."""
    record = new_record(settings, arms, group=None, leaky=[])
    run = Run(settings, folder, arms, record, Progress())
    console = Console(record, total_steps=settings.train.steps, stream=io.StringIO())
    run.start(contextlib.ExitStack(), console=console, warn=print)
    return run


def trainer_seconds(arm: Arm, settings: RunSettings, blocks: Blocks, steps: int, folder: Path) -> float:
    """Seconds per step of a Trainer run of ``steps`` steps, the first three left out."""
    times = StepTimes()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=settings.train.batch_size,
        learning_rate=settings.optim.learning_rate, weight_decay=settings.optim.weight_decay, max_grad_norm=1.0,
        optim="adamw_torch_fused", lr_scheduler_type="cosine", report_to=[], save_strategy="no",
        logging_strategy="steps", logging_steps=settings.train.log_every, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model=arm.model, args=arguments, train_dataset=blocks, callbacks=[times])
    trainer.train()
    return (times.marks[-1] - times.marks[2]) / (len(times.marks) - 3)


def loop_seconds(run: Run, steps: int) -> float:
    """Seconds per step of our loop over ``steps`` steps, after three of warm-up."""
    for _ in range(3):
        step(run)
    start = time.perf_counter()
    for _ in range(steps):
        step(run)
    return (time.perf_counter() - start) / steps


def against_trainer(repeats: int, steps: int, folder: Path) -> None:
    """Print the ratio."""
    options = ("model=standard", "optim=adamw", "reference=none", "train.batch_size=16", "train.device=cpu")
    settings, task = prepared(*options, "train.steps=100000", "tracker=off")
    (ours,), (theirs,) = build_arms(settings, task), build_arms(settings, task)
    run = make_run(settings, [ours], folder)
    blocks = Blocks(task, 16 * (steps + 3), 16)
    pairs = [
        (loop_seconds(run, steps), trainer_seconds(theirs, settings, blocks, steps + 3, folder)) for _ in range(repeats)
    ]
    tokens = task.units_per_step
    report("standard arm / Trainer, nano 4×128×4, context 128, batch 16", pairs, tokens)


def take_turns(
    ways: Sequence[Callable[[], object]], repeats: int, steps: int, device: torch.device
) -> list[tuple[float, ...]]:
    """Of every repeat the seconds per step of each way.

    All take turns, step by step, so that a busy moment hits them alike; who goes first is reversed every repeat.
    """
    found = []
    for repeat in range(-1, repeats):
        spent = [0.0] * len(ways)
        order = list(enumerate(ways))[:: 1 if repeat % 2 else -1]
        for _ in range(steps):
            for number, way in order:
                start = time.perf_counter()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                spent[number] += time.perf_counter() - start
        if repeat >= 0:  # the first round is warm-up
            found.append(tuple(seconds / steps for seconds in spent))
    return found


def interleaved(repeats: int, steps: int, folder: Path, *overrides: str) -> tuple[list[tuple[float, float]], int]:
    """(candidate, reference) seconds per step of every repeat, and the tokens of a step.

    Both arms of one run take turns step by step, and which of them goes first is swapped every repeat.
    """
    settings, task = prepared(*overrides, "train.steps=100000", "tracker=off")
    arms = build_arms(settings, task)
    run = make_run(settings, arms, folder)
    reference, candidate = arms
    pairs = []
    for repeat in range(-1, repeats):
        run.arms = [reference, candidate] if repeat % 2 else [candidate, reference]
        before = [arm.stopwatch.read() for arm in (candidate, reference)]
        for _ in range(steps):
            step(run)
        spent = [arm.stopwatch.read() - b for arm, b in zip((candidate, reference), before, strict=True)]
        if repeat >= 0:  # the first round is warm-up
            pairs.append((spent[0] / steps, spent[1] / steps))
    return pairs, task.units_per_step


def report(name: str, pairs: Sequence[tuple[float, ...]], tokens: int) -> None:
    """Print the ratio of throughputs, first over second, from (seconds, seconds) per step of every repeat."""
    mean, half = t_interval([second / first for first, second in pairs])
    first, second = (tokens / statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name}\n  {first:,.0f} / {second:,.0f} tokens/s: ratio {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"
          f" over {len(pairs)} repeats", flush=True)  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7, choices=range(5, 11))
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, CPU, float32")
    with tempfile.TemporaryDirectory() as folder:
        against_trainer(options.repeats, options.steps, Path(folder))


if __name__ == "__main__":
    main()
