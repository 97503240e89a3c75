"""Benchmarks: every ratio of docs/performance.md, measured side by side on this machine.

    python -m pip install -e ".[bench]"
    python scripts/bench.py                            # all of it, about 40 minutes on two cores
    python scripts/bench.py train optim                # some of it
    python scripts/bench.py --device cuda --output docs/performance/h200.txt
    python scripts/bench.py calls size=pico            # calls of natattn's functions per step; a count, not a time

Programs that are compared take turns in one process, step by step, and the order is reversed in every repeat. Ratios
have a 95 % t interval over the repeats. The machine should be idle; the load before each part is printed.
"""

import argparse
import contextlib
import cProfile
import datetime
import io
import itertools
import os
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import natattn
from natattn.attention.probe import AttentionProbe
from natattn.config.compose import compose, settings_of
from natattn.data import prepare
from natattn.stacked.arm import StackedArm
from natattn.statistics.paired import t_interval
from natattn.tasks import BatchSlice, LanguageTask
from natattn.tracking.console import Console
from natattn.training.arm import Arm
from natattn.training.build import build_arms, open_task
from natattn.training.checkpoint import Progress
from natattn.training.environment import processor
from natattn.training.run import Run
from natattn.training.run_record import new_record
from natattn.training.settings import NoReference, RunSettings
from natattn.training.train import step

ENDLESS = ("train.steps=100000", "train.max_seconds=null", "tracker=off")


@dataclass(frozen=True)
class Options:
    """Command-line options of all parts."""

    device: str
    repeats: int
    folder: Path  # temporary
    overrides: tuple[str, ...]


def prepared(*overrides: str) -> tuple[RunSettings, LanguageTask]:
    """Return settings and task of a run."""
    settings = settings_of(compose([*ENDLESS, *overrides]))
    task = open_task(settings)
    assert isinstance(task, LanguageTask)
    return settings, task


def make_run(settings: RunSettings, arms: list[Arm], folder: Path) -> Run:
    """Start a run like `natattn train`, with a console that prints nothing."""
    record = new_record(settings, arms, group=None, leaky=[])
    run = Run(settings, folder, arms, record, Progress())
    console = Console(record, total_steps=settings.train.steps, stream=io.StringIO())
    run.start(contextlib.ExitStack(), console=console, warn=print)
    return run


def take_turns(
    programs: Sequence[Callable[[], object]], repeats: int, steps: int, device: str
) -> list[tuple[float, ...]]:
    """Return the seconds per step of each program, for each repeat; the first round is warm-up."""
    results = []
    for repeat in range(-1, repeats):
        seconds = [0.0] * len(programs)
        order = list(enumerate(programs))[:: 1 if repeat % 2 else -1]
        for _ in range(steps):
            for index, program in order:
                start = time.perf_counter()
                program()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[index] += time.perf_counter() - start
        if repeat >= 0:
            results.append(tuple(value / steps for value in seconds))
    return results


def report(name: str, times: Sequence[tuple[float, ...]]) -> None:
    """Print median milliseconds of the first two programs and the ratio of their times."""
    mean, half = t_interval([first / second for first, second, *_ in times])
    first, second = (1e3 * statistics.median(column) for column in list(zip(*times, strict=True))[:2])
    interval = f"[{mean - half:.3f}, {mean + half:.3f}]"
    print(f"{name}: {first:.1f} / {second:.1f} ms, time × {mean:.3f} {interval}, speed × {1 / mean:.3f}", flush=True)


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BLN: Tensor) -> Tensor:
        batch, length, width = x_BLN.shape
        parts = self.query_key_value(self.first_norm(x_BLN)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BLN = x_BLN + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return x_BLN + self.down(functional.gelu(self.up(self.second_norm(x_BLN)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 with one q/k/v product, fused attention, fused GELU and a tied head."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList([PlainBlock(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        x_BLN = self.tokens(tokens_BL) + self.positions(torch.arange(tokens_BL.shape[1], device=tokens_BL.device))
        for block in self.blocks:
            x_BLN = block(x_BLN)
        return functional.linear(self.norm(x_BLN), self.tokens.weight)


def train(options: Options) -> None:
    """The loop against a plain GPT's forward, backward and update; two arms; natural + aif; transformers' Trainer."""
    cases = {
        "nano 4×128×4, context 128, batch 4": ("size=nano", "train.batch_size=4"),
        "nano 4×128×4, context 128, batch 16": ("size=nano", "train.batch_size=16"),
        "4×512×8, context 512, batch 4": ("size=nano", "size.n_embd=512", "size.n_head=8", "size.context=512"),
    }
    if options.device == "cuda":
        gpu = ("size=small", "train.batch_size=16", "precision=bf16", "train.compile=true")
        cases = {"small 12×768×12, context 1024, batch 16, bf16, compiled": gpu}
    for name, case in cases.items():
        steps = 4 if "512" in name else 20
        overrides = (*case, f"train.device={options.device}", *options.overrides)
        against_floor(name, overrides, steps, options)
        settings, task = prepared("model=natural", "optim=aif", *overrides)
        run = make_run(settings, build_arms(settings, task), options.folder)
        report(f"natural + aif / standard + AdamW, {name}", arm_times(run, steps, options.repeats))
        settings, task = prepared("model=natural", "optim=adamw", *overrides)
        one = settings.model_copy(update={"reference": NoReference(name="none")})
        runs = [make_run(chosen, build_arms(chosen, task), options.folder) for chosen in (settings, one)]
        programs = [lambda run=run: step(run) for run in runs]  # type: ignore[misc]
        report(f"two arms / one arm, {name}", take_turns(programs, options.repeats, steps, options.device))
    if options.device == "cpu":
        against_trainer(options)


def against_floor(name: str, overrides: tuple[str, ...], steps: int, options: Options) -> None:
    """Compare our loop with the same sizes, forward, backward and fused AdamW, and nothing else."""
    settings, task = prepared("model=standard", "optim=adamw", "reference=none", *overrides)
    run = make_run(settings, build_arms(settings, task), options.folder)
    size, bf16 = settings.size, settings.precision.kind == "bf16"
    vocabulary = task.corpus.tokenizer.vocab_size
    plain: nn.Module = PlainGPT(vocabulary, task.context, size.n_layer, size.n_embd, size.n_head)  # type: ignore[arg-type]
    plain.to(settings.device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-4, fused=True)
    model = torch.compile(plain) if settings.train.compile else plain
    batches = itertools.cycle([task.batch(number, BatchSlice()).to(settings.device) for number in range(8)])

    def floor() -> None:
        tokens = next(batches)
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(tokens[:, :-1])
        functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = take_turns([lambda: step(run), floor], options.repeats, steps, options.device)
    report(f"our loop / floor, {name}", times)
    if options.device == "cuda":
        # 6 operations per weight and token, and 6 · context · width per layer for causal attention (PaLM, appendix B,
        # halved for the masked pairs); relative to products of 8192 × 8192 matrices on this card.
        weights = sum(parameter.numel() for parameter in plain.parameters() if parameter.ndim == 2)
        per_token = 6 * (weights - task.context * size.n_embd) + 6 * size.n_layer * task.context * size.n_embd  # type: ignore[operator]
        matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        products = take_turns([lambda: matrix @ matrix], 10, 1, "cuda")
        rate = 2 * 8192**3 / statistics.median(seconds for (seconds,) in products)
        achieved = per_token * task.units_per_step / statistics.median(ours for ours, _ in times)
        print(f"  {achieved / 1e12:.0f} of {rate / 1e12:.0f} TFLOP/s of an 8192³ product: {achieved / rate:.0%}")


def arm_times(run: Run, steps: int, repeats: int) -> list[tuple[float, float]]:
    """Return (candidate, reference) seconds per step for each repeat; the arms of one run take turns step by step."""
    reference, candidate = run.arms
    times = []
    for repeat in range(-1, repeats):
        run.arms = [reference, candidate] if repeat % 2 else [candidate, reference]
        before = [arm.stopwatch.read() for arm in (candidate, reference)]
        for _ in range(steps):
            step(run)
        seconds = [arm.stopwatch.read() - start for arm, start in zip((candidate, reference), before, strict=True)]
        if repeat >= 0:
            times.append((seconds[0] / steps, seconds[1] / steps))
    return times


def against_trainer(options: Options, steps: int = 20) -> None:
    """Compare our loop with transformers' Trainer on the same model and batches."""
    settings, task = prepared(
        *("model=standard", "optim=adamw", "reference=none", "train.batch_size=16", "train.device=cpu"),
    )
    (ours,), (theirs,) = build_arms(settings, task), build_arms(settings, task)
    run = make_run(settings, [ours], options.folder)
    marks: list[float] = []

    class Marks(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

    samples = [row for number in range(steps + 3) for row in task.batch(number, BatchSlice())[:, :-1]]
    data = [{"input_ids": tokens, "labels": tokens} for tokens in samples]  # the Trainer shifts the labels itself
    arguments = transformers.TrainingArguments(
        output_dir=str(options.folder),
        max_steps=steps + 3,
        per_device_train_batch_size=16,
        learning_rate=settings.optim.learning_rate,
        weight_decay=settings.optim.weight_decay,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        report_to=[],
        save_strategy="no",
        logging_steps=settings.train.log_every,
        disable_tqdm=True,
        use_cpu=True,
    )
    times = []
    for _ in range(options.repeats):
        for _ in range(3):
            step(run)
        start = time.perf_counter()
        for _ in range(steps):
            step(run)
        seconds = (time.perf_counter() - start) / steps
        marks.clear()
        transformers.Trainer(model=theirs.model, args=arguments, train_dataset=data, callbacks=[Marks()]).train()
        times.append((seconds, (marks[-1] - marks[2]) / (len(marks) - 3)))
    report("standard arm / transformers Trainer, nano, context 128, batch 16", times)


def optim(options: Options) -> None:
    """Whole training steps against Muon's; a repeat is two captures of factors and one refresh of their roots."""
    size = ("size=small", "precision=bf16", "train.compile=true") if options.device == "cuda" else ("size=micro",)
    for name in ("natural_muon", "fisher_muon"):
        overrides = (*size, "train.batch_size=16", f"train.device={options.device}", *options.overrides)
        settings, task = prepared("model=natural", f"optim={name}", "reference=muon", *overrides)
        run = make_run(settings, build_arms(settings, task), options.folder)
        report(f"{name} / muon, {size[0]}, batch 16", arm_times(run, 10, options.repeats))


def attention(options: Options) -> None:
    """Observing attention from 32 sampled rows at every step, by context length, relative to plain SDPA."""
    lengths, layers, width, heads, batch = (128, 256, 512, 1024, 2048), 2, 512, 8, 4
    if options.device == "cuda":
        lengths, layers, width, heads, batch = (1024,), 12, 768, 12, 16
    for length in lengths:
        sizes = {"n_positions": length, "n_embd": width, "n_layer": layers, "n_head": heads}
        config = transformers.GPT2Config(vocab_size=1024, bos_token_id=0, eos_token_id=0, **sizes)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        tokens = torch.randint(1024, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(options.device)
        programs = [attention_step(config, tokens, observed=observed) for observed in (True, False)]
        steps = max(1, 4096 // (length * 2))
        report(f"observed / plain, L = {length}", take_turns(programs, options.repeats, steps, options.device))


def attention_step(config: transformers.GPT2Config, tokens: Tensor, *, observed: bool) -> Callable[[], None]:
    """Return a function that makes one training step of a model, with or without a probe."""
    torch.manual_seed(0)
    config._attn_implementation = "sdpa"
    model = transformers.GPT2LMHeadModel(config).to(tokens.device)  # type: ignore[arg-type]
    probe = AttentionProbe(model, row_count=32) if observed else None
    on_gpu = tokens.device.type == "cuda"
    forward = torch.compile(model) if on_gpu else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    steps = itertools.count()

    def one_step() -> None:
        with probe.step(next(steps)) if probe else contextlib.nullcontext():
            with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
                logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
            functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        if probe:
            for layer in probe.layers:
                probe.mean_absolute_energy(layer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return one_step


def seeds(options: Options, count: int = 8) -> None:
    """A training step of eight stacked seeds relative to one seed alone; separate runs would be 8."""
    for name in ("adamw", "aif", "muon", "natural_muon"):
        base = ("size=pico", "train.batch_size=4", "reference=none", f"train.device={options.device}")
        settings, task = prepared(*base, f"optim={name}", *options.overrides)
        built = []
        for seed in range(count + 1):
            own_task = replace(task, seed=seed)
            arm = build_arms(settings.model_copy(update={"seed": seed}), own_task)[-1]
            built.append((arm, [own_task.batch(number, BatchSlice()).to(settings.device) for number in range(16)]))
        (alone, batches), *members = built
        stacked = StackedArm([arm for arm, _ in members])
        together = [torch.cat(parts) for parts in zip(*(own for _, own in members), strict=True)]
        numbers = [itertools.count(), itertools.count()]

        def several(stacked=stacked, together=together, numbers=numbers) -> None:  # type: ignore[no-untyped-def]
            number = next(numbers[0])
            stacked.train_step([together[number % 16]], number, 1.0)

        def one(alone=alone, batches=batches, numbers=numbers) -> None:  # type: ignore[no-untyped-def]
            number = next(numbers[1])
            alone.train_step([batches[number % 16]], number, 1.0)

        report(f"{count} seeds / one, {name}, pico", take_turns([several, one], options.repeats, 20, options.device))


def growth(options: Options) -> None:
    """Seconds per step over context, width and number of arms, with the exponent of the fitted power."""
    fixed = ("size.n_layer=2", "size.n_head=4", "train.batch_size=4", "tokenizer=byte", "reference=none")
    fixed += (f"train.device={options.device}",)

    def built(*overrides: str) -> Run:
        settings, task = prepared(*fixed, *overrides)
        return make_run(settings, build_arms(settings, task), options.folder)

    contexts, widths = (64, 128, 256, 512), (64, 128, 256, 512)
    if options.device == "cuda":
        contexts, widths = (1024, 2048, 4096, 8192), (256, 512, 1024, 2048)
    _growth("context", {size: built("size.n_embd=128", f"size.context={size}") for size in contexts}, options)
    _growth("width", {size: built(f"size.n_embd={size}", "size.context=128") for size in widths}, options)
    kinds = (("standard", "adamw"), ("natural", "aif"), ("natural", "muon"), ("natural", "natural_muon"))
    runs = {}
    for count in range(1, len(kinds) + 1):
        singles = [built("size.n_embd=128", f"model={model}", f"optim={name}") for model, name in kinds[:count]]
        runs[count] = singles[-1]
        for single, (model, name) in zip(singles, kinds, strict=False):
            single.arms[0].name = f"{model}_{name}"
        runs[count].arms = [single.arms[0] for single in singles]
    _growth("arms", runs, options)


def _growth(name: str, runs: dict[int, Run], options: Options) -> None:
    programs = [lambda run=run: step(run) for run in runs.values()]  # type: ignore[misc]
    times = take_turns(programs, options.repeats, 5, options.device)
    slopes = [np.polyfit(np.log(list(runs)), np.log(repeat), 1)[0] for repeat in times]
    mean, half = t_interval([float(slope) for slope in slopes])
    medians = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    shown = ", ".join(f"{size}: {value:.1f} ms" for size, value in zip(runs, medians, strict=True))
    print(f"{name}: {shown}; seconds ∝ {name}^{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]", flush=True)


# The command in a process that ends with its first step.
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


def startup(options: Options) -> None:
    """Start-up, time to the first step, and the data pipeline."""
    imports = "import torch, transformers, hydra, pydantic; from transformers import GPT2LMHeadModel"
    bare = [sys.executable, "-c", "import argparse, importlib.metadata"]
    times = [(_wall([sys.executable, "-m", "natattn", "--help"]), _wall(bare)) for _ in range(options.repeats)]
    report("natattn --help / a bare interpreter", times)
    times = []
    for repeat in range(-1, options.repeats):  # the first repeat fills the caches
        run_folder = options.folder / f"run{repeat}"
        first = _wall([sys.executable, "-c", FIRST_STEP, "train", "tracker=off", f"hydra.run.dir={run_folder}"])
        times.append((first, _wall([sys.executable, "-c", imports])))
    report("default run to its first step / its imports", times[1:])
    settings, task = prepared()
    rates = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            corpus = prepare(settings.data, settings.tokenizer, cache=Path(cache), progress=False)  # type: ignore[arg-type]
            size = corpus.train.byte_count + corpus.validation.byte_count
            rates.append(size / 1e6 / (time.perf_counter() - start))
    mean, half = t_interval(rates)
    print(f"text to tokens with an empty cache: {mean:.1f} [{mean - half:.1f}, {mean + half:.1f}] MB/s", flush=True)
    start = time.perf_counter()
    size = sum(task.batch(number, BatchSlice()).nbytes for number in range(1000))
    print(f"tokens to batches: {size / 1e6 / (time.perf_counter() - start):.0f} MB/s of int64", flush=True)


def _wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def calls(options: Options, steps: int = 40) -> None:
    """Calls of natattn's functions in a training step of two arms, and the functions that are called most."""
    settings, task = prepared(*options.overrides)
    run = make_run(settings, build_arms(settings, task), options.folder)
    for _ in range(5):
        step(run)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(steps):
        step(run)
    profile.disable()
    package, counts = Path(natattn.__file__).parent, Counter[str]()
    for (file, _, function), (_, number, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if Path(file).is_relative_to(package):
            counts[f"{Path(file).relative_to(package)}:{function}"] += number
    print(f"{counts.total() / steps:.0f} natattn calls per step ({' '.join(options.overrides) or 'default'})")
    for name, number in counts.most_common(20):
        print(f"{number / steps:8.1f}  {name}")


PARTS = {part.__name__: part for part in (train, optim, attention, seeds, growth, startup, calls)}


class _Tee(io.TextIOBase):
    """Standard output, with a copy in a file that is complete after every line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stdout, self._file = sys.stdout, path.open("w", encoding="utf-8", buffering=1)

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._stdout.write(text)

    def flush(self) -> None:
        self._stdout.flush()


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)} (default: all); and key=value of natattn train")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write to this file")
    arguments = parser.parse_args()
    names = [part for part in arguments.parts if "=" not in part]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"{unknown[0]}: no such part. Use {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device. Use --device cpu")
    if arguments.output is not None:
        sys.stdout = _Tee(arguments.output)  # type: ignore[assignment]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    cpu = f"{processor() or platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}, Python", end=" ")
    print(f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
    print(torch.cuda.get_device_name() if arguments.device == "cuda" else cpu)
    overrides = tuple(part for part in arguments.parts if "=" in part)
    for name in names or PARTS:
        print(f"\n{name}: {PARTS[name].__doc__} (load before: {os.getloadavg()[0]:.1f})", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Options(arguments.device, arguments.repeats, Path(folder), overrides))


if __name__ == "__main__":
    main()
