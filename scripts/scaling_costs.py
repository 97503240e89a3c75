"""What several ranks keep and send in a step: the formulas of docs/distributed.md, their table, and their check.

    python scripts/scaling_costs.py                                # the table, up to 70B parameters and 1,024 ranks
    torchrun --nproc-per-node=2 scripts/scaling_costs.py --check   # against what a small model keeps and sends on gloo

Everything is counted in elements, to be multiplied by their bytes. The check trains a few steps, counts the elements of
every tensor that this rank keeps and of every collective that it takes part in, and prints measured over formula.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from natattn.config import compose as config
from natattn.distributed.ranks import Ranks, local
from natattn.tasks import LanguageTask
from natattn.training.build import build_arms, open_task

OPTIMIZERS = ("adamw", "aif", "muon", "fisher_muon", "natural_muon")
WAYS = ("ddp", "fsdp")


@dataclass(frozen=True)
class Model:
    """A GPT-2 by its sizes; biases and norms are small and left out."""

    name: str
    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    context: int = 0

    @property
    def hidden(self) -> int:
        """Elements of the blocks' matrices: query, key, value, output, and two of the MLP."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def others(self) -> int:
        """Elements of embeddings, with the head tied to them."""
        return (self.vocabulary + self.context) * self.width


MODELS = (
    Model("124M", 12, 768, 12, 3072, 50304, 1024),
    Model("1.5B", 48, 1600, 25, 6400, 50304, 1024),
    Model("7B", 32, 4096, 32, 16384, 50304, 4096),
    Model("70B", 80, 8192, 64, 32768, 128256, 8192),
)


def factor_elements(model: Model, optimizer: str) -> int:
    """Elements of the factors' running averages, which every rank keeps."""
    width, inner, head_dim = model.width, model.inner, model.width // model.heads
    query_and_key = 2 * width**2
    if optimizer == "fisher_muon":
        return model.layers * (query_and_key + 2 * model.heads * head_dim**2)
    if optimizer == "natural_muon":  # A_Q, A_K and A_V of every head; covariances of the output's and the MLP's inputs
        return model.layers * (query_and_key + model.heads * width**2 + 2 * width**2 + inner**2)
    return 0


def root_elements(model: Model, optimizer: str) -> int:
    """Elements of roots or inverses, all ranks together: one per matrix and head."""
    width, inner, heads, head_dim = model.width, model.inner, model.heads, model.width // model.heads
    if optimizer == "fisher_muon":
        return model.layers * 2 * (width**2 + heads * head_dim**2)
    if optimizer == "natural_muon":
        return model.layers * (2 * width**2 + heads * width**2 + 2 * width**2 + inner**2)
    return 0


def kept(model: Model, optimizer: str, way: str, ranks: int) -> dict[str, float]:
    """Elements on one rank between steps: weights, state of the optimizer, averages of factors."""
    share = ranks if way == "fsdp" else 1
    split = optimizer not in ("adamw", "aif")
    momenta = model.hidden / ranks if split else 2 * model.hidden / share
    return {
        "weights": (model.hidden + model.others) / share,
        "state": momenta + 2 * model.others / share + root_elements(model, optimizer) / ranks,
        "factors": float(factor_elements(model, optimizer)),
    }


def sent(model: Model, optimizer: str, way: str) -> dict[str, float]:
    """Elements of the tensors that a step's collectives make or reduce; a ring moves (n − 1)/n of that per rank.

    An all-reduce counts twice: it is a reduce-scatter and an all-gather.
    """
    whole = model.hidden + model.others
    split = optimizer not in ("adamw", "aif")
    exchange = (model.hidden if way == "ddp" else 2 * model.hidden) if split else 0
    return {
        "gradients": 2.0 * whole if way == "ddp" else 3.0 * whole,  # fsdp: weights twice, gradients once
        "updates": float(exchange),  # of matrices, told by their owners; fsdp: their gradients, gathered, as well
        "factors, at a capture": 2.0 * factor_elements(model, optimizer),
    }


def table() -> None:
    """Print what float32 takes, for models that cannot be tested here."""
    print(f"{'model':>6} {'ranks':>6} {'way':>5} {'optimizer':>13} {'kept, GB per rank':>42} {'sent, GB per step':>36}")
    for model in MODELS:
        for ranks in (8, 64, 1024):
            for way in WAYS:
                for optimizer in ("adamw", "muon", "fisher_muon", "natural_muon"):
                    gigabytes = {name: 4e-9 * n for name, n in kept(model, optimizer, way, ranks).items()}
                    moved = {name: 4e-9 * n * (ranks - 1) / ranks for name, n in sent(model, optimizer, way).items()}
                    held = "  ".join(f"{name} {value:.1f}" for name, value in gigabytes.items())
                    said = " + ".join(f"{value:.1f}" for value in moved.values())
                    print(f"{model.name:>6} {ranks:>6} {way:>5} {optimizer:>13} {held:>42} {said:>36}")


def check(steps: int) -> None:
    """Train a small model in every way and print what was kept and sent, over what the formulas say."""
    from natattn.cli.torchrun import LauncherStore, joined

    with joined(LauncherStore()) as ranks:
        for optimizer in OPTIMIZERS:
            for way in WAYS:
                measured, expected = _measured(optimizer, way, ranks, steps)
                if ranks.is_first:
                    pairs = (f"{name} {measured[name] / expected[name]:.3f}" for name in measured if expected[name])
                    print(f"{way:>5} {optimizer:>13}, measured / formula: {'  '.join(pairs)}", flush=True)


def _measured(optimizer: str, way: str, ranks: Ranks, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Elements kept on the first rank and bytes sent by all, measured and by the formulas."""
    overrides = ["size=micro", "size.context=64", "tokenizer=byte", "reference=none", f"train.parallel={way}"]
    settings = config.settings_of(config.compose([*overrides, f"optim={optimizer}", "train.device=cpu", "tracker=off"]))
    task = open_task(settings, progress=False)
    assert isinstance(task, LanguageTask)
    (arm,) = build_arms(settings, task, ranks)
    context, vocab_size = task.context, task.corpus.tokenizer.vocab_size
    size = settings.size
    assert size.n_layer is not None
    assert size.n_embd is not None
    assert size.n_head is not None
    model = Model("", size.n_layer, size.n_embd, size.n_head, 4 * size.n_embd, vocab_size, context)
    tokens = torch.randint(vocab_size, (2, context + 1))
    arm.train_step([tokens], 0, 1.0)
    every = settings.optim.factors.every if settings.optim.factors else 1
    quiet = [step for step in range(1, 1000) if every == 1 or step % every][:steps]  # no captures in them
    traffic = []
    for chosen in (quiet, [every * step for step in range(1, steps + 1)]):
        ranks.wait()
        before = _loopback_bytes()
        for step in chosen:
            arm.train_step([tokens], step, 1.0)
        ranks.wait()
        traffic.append((_loopback_bytes() - before) / steps)
    held, told = kept(model, optimizer, way, ranks.size), sent(model, optimizer, way)
    expected = {**held, "sent": 4 * (ranks.size - 1) * (told["gradients"] + told["updates"])}
    measured = {
        "weights": float(sum(local(parameter).numel() for parameter in arm.model.parameters())),
        "state": float(sum(value.numel() for state in arm.optimizer.state.values() for value in state.values())),
        "factors": float(sum(t.numel() for name, t in arm.probe.state_dict().items() if name.endswith("/total")))
        if arm.probe is not None
        else 0.0,
        "sent": traffic[0],
    }
    if held["factors"]:
        measured["capture"], expected["capture"] = (
            traffic[1] - traffic[0],
            4 * (ranks.size - 1) * told["factors, at a capture"],
        )
    states = ranks.gather(measured["state"])
    measured["state"] = sum(states) / len(states)  # owners differ by a matrix
    return measured, expected


def _loopback_bytes() -> int:
    """Bytes that this machine has sent to itself so far; nothing else should be talking."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("no loopback interface in /proc/net/dev")


def main() -> None:
    """The table, or the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    if options.check:
        check(options.steps)
    else:
        table()


if __name__ == "__main__":
    main()
