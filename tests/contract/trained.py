"""Small models with an optimizer of ``conf/optim``, and a loss that they can learn."""

import contextlib

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from natattn.optim.settings import OptimSettings
from natattn.training.settings import compose_run

TOKENS = {
    "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def settings_of(name: str, *overrides: str) -> OptimSettings:
    return compose_run([f"optim={name}", *overrides]).optim


def build_model(kind: str = "gpt2", dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                initializer_range=0.2, **TOKENS,
            )
        )  # fmt: skip
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.2, **TOKENS,
            )
        )  # fmt: skip
    return model.to(dtype).train()


def loss_of(model, step: int) -> torch.Tensor:
    tokens = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(step))
    tokens[:, 1:] = (tokens[:, :1] + torch.arange(1, 12)) % 30  # something that can be learned
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


class Trained:
    """A model with an optimizer of ``conf/optim`` and its probe."""

    def __init__(self, name: str, *overrides: str, kind: str = "gpt2", dtype: torch.dtype = torch.float32, model=None):
        self.settings = settings_of(name, *overrides)
        self.model = build_model(kind, dtype) if model is None else model
        self.probe = self.settings.build_probe(self.model, row_count=4)
        self.optimizer = self.settings.build(self.model, self.probe)

    def observed(self, step: int):
        return self.probe.step(step) if self.probe is not None else contextlib.nullcontext()

    def backward(self, step: int) -> torch.Tensor:
        with self.observed(step):
            loss = loss_of(self.model, step)
            loss.backward()
        return loss.detach()

    def train(self, steps) -> list[float]:
        losses = []
        for step in steps:
            losses.append(float(self.backward(step)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses
