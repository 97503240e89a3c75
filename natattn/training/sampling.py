"""Sampling text from a trained arm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from natattn.attention.stabilisers import restore_stabilisers
from natattn.config.base import Settings
from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.models.pretrained import without_progress_bars
from natattn.models.registry import register_architectures
from natattn.models.trust import check_trust
from natattn.training.run_folder import announce, read_run, trained_arm

_COLDEST = 1e-30  # below, logits divided by it can overflow float32; sampling is then greedy, as at 0


class SampleSettings(Settings):
    """Arguments of `natattn sample`; they have defaults here because they are not in YAML."""

    run: str
    prompt: str = ""
    arm: str | None = None
    tokens: int = Field(default=100, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_k: int = Field(default=50, ge=0)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)


def sample_text(settings: SampleSettings) -> Iterator[str]:
    """Yield the prompt, then the text that the arm's model continues it with.

    Raises: UserError if the run, the arm or its model is missing or damaged, or the prompt fills the context.
    """
    register_architectures()
    _, folder = trained_arm(Path(settings.run), settings.arm)
    task = read_run(Path(settings.run)).get("task", "language")
    if task != "language":
        raise UserError(f"run={settings.run}: its arms do not generate text (task={task}); valid: a task=language run")
    tokenizer, model = _load_tokenizer(folder), _load_model(folder)
    prompt = tokenizer.encode(settings.prompt, add_special_tokens=False)
    if settings.prompt and not prompt:
        raise UserError(f"prompt={settings.prompt!r}: no token for any of it; leave it out to start a document")
    prompt = prompt or [model.config.eos_token_id]
    room = model.config.max_position_embeddings - len(prompt)
    if room < 1:
        raise UserError(
            f"prompt: its {len(prompt)} tokens fill the context of {model.config.max_position_embeddings}; shorten it"
        )
    if settings.tokens > room:
        context = model.config.max_position_embeddings
        announce(
            f"natattn: only {room} of the requested {settings.tokens} tokens fit in the {context}-token context; "
            f"generating {room}"
        )
    torch.manual_seed(settings.seed)
    sampling = settings.temperature > _COLDEST
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=min(settings.tokens, room),
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_k=settings.top_k if sampling else None,
        pad_token_id=model.config.eos_token_id,
    )
    yield settings.prompt
    yield str(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))


def _load_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        check_trust(str(folder), local_files_only=True)
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
        restore_stabilisers(model)
        return model
    except Exception as error:  # transformers raises errors of all kinds
        raise UserError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # From a config.json alone transformers builds a tokenizer without a vocabulary.
        raise UserError(f"{folder}: the tokenizer cannot be loaded: no tokenizer.json with a vocabulary")
    return tokenizer
