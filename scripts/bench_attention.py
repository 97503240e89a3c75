"""What observing attention costs: time and peak memory of a training step, side by side.

    python scripts/bench_attention.py
    python scripts/bench_attention.py --device cuda      # bf16, torch.compile, 124M parameters, L = 1024, batch 16

Three ways to train the same GPT-2 on the same tokens: plain SDPA; natural attention with mean |E| of every layer from
32 sampled rows on every step; and the published mechanism, which writes attention out, keeps every layer's L×L
energies and takes the mean of the whole matrix. Single steps are interleaved, in rotating order; ratios are of a
repeat's median step to that of plain SDPA, with a 95 % t interval over the repeats. Peak memory is that of a process
which makes three steps: on the CPU resident memory, with a malloc that gives freed tensors back at once, on CUDA what
was allocated. Nothing is written.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, GPT2Config, GPT2LMHeadModel
from transformers.masking_utils import sdpa_mask

from natattn.attention.probe import AttentionProbe
from natattn.statistics.paired import t_interval

PLAIN, NATURAL, PUBLISHED = "plain SDPA", "natural, 32 rows", "published mechanism"
WAYS = (PLAIN, NATURAL, PUBLISHED)


@dataclass(frozen=True)
class Case:
    """One size of model and batch."""

    device: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    length: int
    batch: int


CPU_CASES = [
    Case("cpu", layers=2, width=512, heads=8, vocabulary=1024, length=length, batch=4)
    for length in (128, 256, 512, 1024, 2048, 4096)
]
CUDA_CASES = [Case("cuda", layers=12, width=768, heads=12, vocabulary=50304, length=1024, batch=16)]


def energy_keeping_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention written out, with the L×L energies left on the module, as the published block does."""
    energies = query @ key.transpose(-1, -2) * scaling
    module.kept_energies = energies.detach()
    length = query.shape[2]
    future = torch.ones((length, length), dtype=torch.bool, device=query.device).triu(1)
    pattern = torch.softmax(energies.masked_fill(future, -torch.inf), -1)
    return (pattern.to(value.dtype) @ value).transpose(1, 2), None


class Trainer:
    """A model trained in one of the three ways."""

    def __init__(self, way: str, case: Case) -> None:
        AttentionInterface.register("energy_keeping", energy_keeping_attention)
        AttentionMaskInterface.register("energy_keeping", sdpa_mask)
        self.case = case
        config = GPT2Config(
            vocab_size=case.vocabulary, n_positions=case.length, n_embd=case.width, n_layer=case.layers,
            n_head=case.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        config._attn_implementation = "energy_keeping" if way == PUBLISHED else "sdpa"
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(config).to(case.device)  # type: ignore[arg-type]
        self.probe = AttentionProbe(self.model, row_count=32) if way == NATURAL else None
        self.keeps = way == PUBLISHED
        self.forward = torch.compile(self.model) if case.device == "cuda" else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(case.vocabulary, (case.batch, case.length + 1), generator=generator).to(case.device)
        self.steps = 0

    def step(self) -> list[Tensor]:
        """One training step; returns mean |E| of every layer where it is observed."""
        autocast = torch.autocast("cuda", torch.bfloat16) if self.case.device == "cuda" else contextlib.nullcontext()
        with self.probe.step(self.steps) if self.probe else contextlib.nullcontext():
            with autocast:
                logits = self.forward(input_ids=self.tokens[:, :-1], use_cache=False).logits
            nn.functional.cross_entropy(logits.float().flatten(0, 1), self.tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        self.steps += 1
        energies = []
        if self.probe:
            energies = [self.probe.mean_absolute_energy(layer) for layer in self.probe.layers]
        elif self.keeps:
            energies = [block.attn.kept_energies.abs().mean() for block in self.model.transformer.h]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return energies

    def seconds(self) -> float:
        """Seconds of one step."""
        _synchronize(self.case)
        start = time.perf_counter()
        self.step()
        _synchronize(self.case)
        return time.perf_counter() - start


def _synchronize(case: Case) -> None:
    if case.device == "cuda":
        torch.cuda.synchronize()


def peak_memory(way: str, case: Case) -> float:
    """MiB at the worst moment of three steps, in a process of their own."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by glibc when the process starts
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_memory, args=(way, case, sender))
    process.start()
    sender.close()  # the child's copy is the only one left: should it fail, recv raises instead of waiting
    peak: float = receiver.recv()
    process.join()
    return peak


def _send_peak_memory(way: str, case: Case, sender: "multiprocessing.connection.Connection") -> None:
    # The same small steps first, so that what is measured is not the loading of libraries.
    Trainer(way, replace(case, length=16, batch=1)).step()
    gc.collect()
    before = _peak_resident()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(way, case)
    for _ in range(3):
        trainer.step()
    if case.device == "cuda":
        sender.send(torch.cuda.max_memory_allocated() / 2**20)
    else:
        sender.send(_peak_resident() - before)


def _peak_resident() -> float:
    """MiB of this process's peak resident memory (Linux); ru_maxrss would begin with the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def times(case: Case, repeats: int) -> dict[str, list[float]]:
    """Median seconds per step of every way on every repeat, interleaved step by step."""
    trainers = {way: Trainer(way, case) for way in WAYS}
    for trainer in trainers.values():
        for _ in range(3):  # warm-up and compilation
            trainer.step()
    rounds = max(1, round(1.0 / trainers[PLAIN].seconds()))
    results: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        steps: dict[str, list[float]] = {way: [] for way in WAYS}
        for place in range(rounds * len(WAYS)):
            way = WAYS[(place + place // len(WAYS)) % len(WAYS)]
            steps[way].append(trainers[way].seconds())
        for way in WAYS:
            results[way].append(statistics.median(steps[way]))
    return results


def report(case: Case, seconds: dict[str, list[float]], memory: dict[str, float]) -> None:
    """Print one case: every way in absolute numbers and as a ratio to plain SDPA."""
    print(f"L = {case.length}, batch {case.batch}, {case.layers} layers × {case.width}, {case.heads} heads")
    for way in WAYS:
        ratios = [own / plain for own, plain in zip(seconds[way], seconds[PLAIN], strict=True)]
        mean, half = t_interval(ratios)
        print(
            f"  {way:20} {statistics.median(seconds[way]) * 1e3:9.1f} ms  × {mean:.3f} [{mean - half:.3f},"
            f" {mean + half:.3f}]   {memory[way]:8.0f} MiB  × {memory[way] / memory[PLAIN]:.3f}",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7, choices=range(5, 11))
    parser.add_argument("--lengths", type=int, nargs="*", help="only these L")
    options = parser.parse_args()
    threads = f"{torch.get_num_threads()} threads, {platform.machine()}, float32"
    where = torch.cuda.get_device_name() + ", bf16, compiled" if options.device == "cuda" else threads
    print(f"torch {torch.__version__}, {where}; time and memory per training step, {options.repeats} repeats")
    for case in CUDA_CASES if options.device == "cuda" else CPU_CASES:
        if not options.lengths or case.length in options.lengths:
            memory = {way: peak_memory(way, case) for way in WAYS}
            report(case, times(case, options.repeats), memory)


if __name__ == "__main__":
    main()
