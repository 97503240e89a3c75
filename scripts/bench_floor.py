"""Our loop against the floor: a plain GPT, forward, backward and fused AdamW, and nothing else.

    python scripts/bench_floor.py
    python scripts/bench_floor.py --device cuda        # 124M, context 1024, bf16, compile, batch 16

The floor's model computes GPT-2 with one fused q/k/v product, fused attention and the fused tanh form of GELU. Our loop
trains the same sizes with clipping, the schedule, addressed batches and logging. Steps are interleaved, and who goes
first alternates; ratios are of tokens/s, with a 95 % t interval over the repeats. Then: two arms against one, and the
natural arm with optim=aif against the standard arm with AdamW. Nothing is written.
"""

import argparse
import itertools
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from bench_train import interleaved, make_run, prepared, report, take_turns
from torch import Tensor, nn
from torch.nn import functional

from natattn.models.gpt2 import SizeSettings
from natattn.statistics.paired import t_interval
from natattn.tasks import BatchSlice, LanguageTask
from natattn.training.build import build_arms
from natattn.training.settings import NoReference
from natattn.training.train import step


@dataclass(frozen=True)
class Case:
    """A size of model and batch, as overrides of `natattn train`."""

    name: str
    overrides: tuple[str, ...]


CASES = {
    "cpu": [
        Case("nano 4×128×4, context 128, batch 4", ("size=nano", "train.batch_size=4")),
        Case("nano 4×128×4, context 128, batch 16", ("size=nano", "train.batch_size=16")),
        Case(
            "4×512×8, context 512, batch 4",
            ("size=nano", "size.n_embd=512", "size.n_head=8", "size.context=512", "train.batch_size=4"),
        ),
    ],
    "cuda": [
        Case(
            "small 12×768×12, context 1024, batch 16, bf16, compile",
            ("size=small", "size.context=1024", "train.batch_size=16", "precision=bf16", "train.compile=true"),
        )
    ],
}


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
        hidden = functional.gelu(self.up(self.second_norm(x_BLN)), approximate="tanh")
        return x_BLN + self.down(hidden)


class PlainGPT(nn.Module):
    """Logits of GPT-2, with the head tied to the embedding."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList([PlainBlock(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        places = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        x_BLN = self.tokens(tokens_BL) + self.positions(places)
        for block in self.blocks:
            x_BLN = block(x_BLN)
        return functional.linear(self.norm(x_BLN), self.tokens.weight)


def floor_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, *, bf16: bool) -> None:
    """Forward, backward, update."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = model(tokens[:, :-1])
    functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def against_floor(case: Case, device: str, repeats: int, steps: int, folder: Path) -> None:
    """Tokens/s of our loop over those of the floor."""
    options = ("model=standard", "optim=adamw", "reference=none", f"train.device={device}", *case.overrides)
    settings, task = prepared(*options, "train.steps=100000", "tracker=off")
    run = make_run(settings, build_arms(settings, task), folder)
    size, vocab_size = settings.size, task.corpus.tokenizer.vocab_size
    plain: nn.Module = PlainGPT(vocab_size, task.context, size.n_layer, size.n_embd, size.n_head)  # type: ignore[arg-type]
    plain.to(run.device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-4, fused=True)
    model = torch.compile(plain) if settings.train.compile else plain
    batches = [task.batch(step, BatchSlice()).to(run.device) for step in range(8)]
    bf16 = settings.precision.kind == "bf16"

    numbers = itertools.count()

    def floor() -> None:
        floor_step(model, optimizer, batches[next(numbers) % 8], bf16=bf16)

    pairs = take_turns([partial(step, run), floor], repeats, steps, run.device)
    report(f"our loop / floor, {case.name}", pairs, task.units_per_step)
    if run.device.type == "cuda":
        seconds = statistics.median(ours for ours, _ in pairs)
        share_of_matrix_rate(plain, size, task, seconds)


def share_of_matrix_rate(model: nn.Module, size: SizeSettings, task: LanguageTask, seconds: float) -> None:
    """Print the step's arithmetic over that of bf16 products of 8192 × 8192 matrices on this card.

    A token costs 6 operations for each weight of a matrix, and 6 · context · width for each layer's causal attention
    (PaLM, appendix B, halved for the pairs that the mask leaves out).
    """
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    weights -= task.context * size.n_embd  # type: ignore[operator]  # positions are looked up; tokens are the head too
    per_token = 6 * weights + 6 * size.n_layer * task.context * size.n_embd  # type: ignore[operator]
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        matrix @ matrix
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    rate = 2 * 8192**3 / statistics.median(times[3:])
    achieved = per_token * task.units_per_step / seconds
    print(
        f"  {achieved / 1e12:.0f} of {rate / 1e12:.0f} TFLOP/s of an 8192³ product: {100 * achieved / rate:.0f} %",
        flush=True,
    )


def arms_against_each_other(case: Case, device: str, repeats: int, steps: int, folder: Path) -> None:
    """Natural + aif against standard + AdamW, step by step in one run; and two arms with AdamW against one."""
    overrides = (*case.overrides, "model=natural", "optim=aif", f"train.device={device}")
    pairs, tokens = interleaved(repeats, steps, folder, *overrides)
    report(f"natural + aif / standard + AdamW, {case.name}", pairs, tokens)
    settings, task = prepared(*overrides, "optim=adamw", "train.steps=100000", "tracker=off")
    two = build_arms(settings, task)
    one = build_arms(settings.model_copy(update={"reference": NoReference(name="none")}), task)
    runs = [make_run(settings, arms, folder) for arms in (two, one)]
    times = [
        both / alone for both, alone in take_turns([partial(step, run) for run in runs], repeats, steps, runs[0].device)
    ]
    mean, half = t_interval(times)
    print(f"two arms / one arm, {case.name}: time × {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]", flush=True)


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=CASES, default="cpu")
    parser.add_argument("--repeats", type=int, default=7, choices=range(5, 11))
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES[options.device]:
            steps = options.steps if "512" not in case.name else max(2, options.steps // 5)
            against_floor(case, options.device, options.repeats, steps, Path(folder))
            arms_against_each_other(case, options.device, options.repeats, steps, Path(folder))


if __name__ == "__main__":
    main()
