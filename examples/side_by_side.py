"""Train a standard and a natural-attention GPT-2 side by side, in one file to copy and change.

    python examples/side_by_side.py                       # on Python's own standard library
    python examples/side_by_side.py --text corpus.txt --steps 1000

Both arms start from the same weights and see the same batches; AdamW updates one, NaturalMuon the other. This is
`natattn train model=natural optim=natural_muon` without its guards, checkpoints, schedules and metrics files.
"""

import argparse
import inspect
import json
import math
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from natattn import NaturalMuon


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, help="text file to train on (default: two modules of Python)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    context, batch_size = 64, 16

    # Data: bytes as tokens, the last tenth held out.
    text = (
        options.text.read_bytes()
        if options.text
        else Path(inspect.__file__).read_bytes() + Path(argparse.__file__).read_bytes()
    )
    tokens = torch.tensor(list(text))
    train, validation = tokens.split([len(tokens) - len(tokens) // 10, len(tokens) // 10])

    def batch(split: torch.Tensor, seed: int) -> torch.Tensor:
        """Windows [batch, context] that depend only on the seed."""
        starts = torch.randint(len(split) - context, (batch_size,), generator=torch.Generator().manual_seed(seed))
        return torch.stack([split[start : start + context] for start in starts])

    # Arms: the same architecture and the same initial weights, each with its optimizer.
    sizes = {"n_layer": 2, "n_embd": options.width, "n_head": 4}
    without = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(vocab_size=256, n_positions=context, **sizes, **without)
    torch.manual_seed(0)
    standard, natural = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    natural.load_state_dict(standard.state_dict())
    arms = {
        "standard + AdamW": (standard, torch.optim.AdamW(standard.parameters(), lr=3e-3)),
        # Attaches a probe, which makes the model's attention observable without changing what it computes.
        "natural + NaturalMuon": (natural, NaturalMuon(natural)),
    }

    def loss(model: GPT2LMHeadModel, windows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the next byte in nats."""
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    @torch.no_grad()
    def validation_loss(model: GPT2LMHeadModel) -> float:
        return sum(float(loss(model, batch(validation, seed))) for seed in range(8)) / 8

    # Training: step s is the state after s updates.
    print(f"{len(train)} bytes to train on; a uniform guess has {math.log(256):.4f} nats/byte")
    for step in range(options.steps + 1):
        if step % options.evaluate_every == 0 or step == options.steps:
            losses = {name: round(validation_loss(model), 4) for name, (model, _) in arms.items()}
            print(json.dumps({"step": step, **losses}), flush=True)
        if step == options.steps:
            break
        windows = batch(train, seed=1000 + step)
        for model, optimizer in arms.values():
            loss(model, windows).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()
