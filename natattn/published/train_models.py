"""``train_models``: the paper's Python entry point, on the run machinery behind ``natattn train``."""

import os
import shlex
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from natattn.config.base import Settings
from natattn.config.compose import groups, quote_paths, validated
from natattn.config.messages import suggestion
from natattn.errors import UserError
from natattn.storage.atomic import conf_folder
from natattn.training.settings import compose_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from natattn.training.settings import RunSettings

DEFAULTS: Mapping[str, int | float] = {
    "max_length": 32,
    "batch_size": 4,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "learning_rate": 1e-3,
    "epochs": 10,
    "save_every": 2,
}


class PaperSettings(Settings):
    """The keys of ``config_dict``."""

    max_length: int = Field(ge=2)  # tokens of context
    batch_size: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    epochs: int = Field(ge=1)
    save_every: int = Field(ge=1)  # epochs between checkpoints

    def overrides(self) -> list[str]:
        """Return the configuration as overrides of conf/train.yaml, with the constants of the published experiment.

        Not as published: both models are causal, have GPT-2's blocks without dropout, and labels are shifted once.
        """
        rate = self.learning_rate
        return [
            *("model=natural", "optim=aif", "reference=adamw", "schedule=constant", "schedule.warmup_steps=0"),
            *(f"size.{key}={getattr(self, key)}" for key in ("n_layer", "n_embd", "n_head")),
            *("size.name=paper", f"size.context={self.max_length}", "size.initializer_range=0.02"),
            "tokenizer.vocab_size=8192",
            *(f"{arm}.learning_rate={rate}" for arm in ("optim", "reference")),
            *(f"++{arm}.learning_rates.hidden={rate}" for arm in ("optim", "reference")),
            "optim.directions.default.inner.betas=[0.9,0.999]",
            "reference.directions.default.betas=[0.9,0.999]",
            *(f"train.batch_size={self.batch_size}", "train.sampling=epochs", "train.clip_norm=1.0", "tracker=off"),
        ]


def train_models(
    config_dict: Mapping[str, Any],
    data: str | Path = "stdlib",
    *,
    folder: str | Path | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = 200.0,
    seed: int = 0,
) -> tuple["PreTrainedModel", "PreTrainedModel"]:
    """Train a standard GPT-2 with AdamW and a natural one with the paper's optimizer, side by side.

    Both start from the same weights and see the same batches: every block of the training text once per epoch. The
    natural model is the same causal GPT-2, its attention energies observed for ``optim=aif``.

    Args:
        config_dict: ``max_length, batch_size, n_embd, n_layer, n_head, learning_rate, epochs, save_every``; those left
            out have the paper's values (``DEFAULTS``).
        data: "stdlib" (no network), "wikitext2" or another option of conf/data, or a path to text.
        folder: of the run's metrics, checkpoints and models; None for a new one under outputs/.
        max_steps: stop after this many steps, whatever ``epochs`` says.
        max_seconds: stop training after this long, with a warning; None for no limit.
        seed: of initial weights and data order.

    Returns: (standard model, natural model), in eval mode on the CPU.

    Raises:
        ValueError: naming the key that is unknown or out of range, or what is wrong with the data or the folder.
        RuntimeError: a model diverged.
        KeyboardInterrupt: training was interrupted; resume with ``natattn train resume=FOLDER``.
    """
    from natattn.training.train import train

    try:
        if not isinstance(config_dict, Mapping):
            raise UserError(f"config_dict: is a {type(config_dict).__name__}; valid: a dict")
        paper = validated({**DEFAULTS, **config_dict}, PaperSettings)
        settings, steps_per_epoch = _run_settings(paper, data, max_steps, max_seconds, seed)
        target = Path(folder) if folder is not None else _new_folder()
        result = train(settings, target)
    except UserError as error:
        raise ValueError(str(error)) from error
    if result.outcome == "interrupted":
        raise KeyboardInterrupt(f"interrupted; resume with: natattn train resume={shlex.quote(str(target))}")
    if result.outcome == "time_limit":
        warnings.warn(
            f"training stopped after max_seconds={max_seconds}, before {settings.train.steps} steps "
            f"({steps_per_epoch} per epoch) were made; None has no limit",
            stacklevel=2,
        )
    return _load(target, "standard", "sdpa"), _load(target, settings.candidate_name, "natural")


def _run_settings(
    paper: PaperSettings, data: str | Path, max_steps: int | None, max_seconds: float | None, seed: int
) -> tuple["RunSettings", int]:
    """Settings of the run, and its steps per epoch, which only the tokenized text tells."""
    from natattn.data import Batches
    from natattn.tasks import LanguageTask
    from natattn.training.build import open_task

    if max_steps is not None and max_steps < 1:
        raise UserError(f"max_steps={max_steps}: must be at least 1, or None for all epochs")
    limit = "null" if max_seconds is None else max_seconds
    overrides = [*paper.overrides(), *_data_overrides(data), f"train.max_seconds={limit}", f"seed={seed}"]
    draft = compose_run(overrides)
    task = open_task(draft)
    assert isinstance(task, LanguageTask)
    batches = Batches(task.corpus.train, paper.batch_size, paper.max_length, seed, "epochs")
    steps_per_epoch = -(-batches.blocks_per_epoch // paper.batch_size)
    steps = -(-paper.epochs * batches.blocks_per_epoch // paper.batch_size)
    steps = steps if max_steps is None else min(steps, max_steps)
    overrides += [
        f"train.steps={steps}",
        f"train.evaluate_every={-(-steps // paper.epochs)}",  # once per epoch, as often in a shorter run
        f"train.checkpoint_every={paper.save_every * steps_per_epoch}",
    ]
    return compose_run(overrides), steps_per_epoch


def _data_overrides(data: str | Path) -> list[str]:
    # Without text itself, which is what a path stands for.
    options = [option for option in groups()["data"] if option != "text" and _is_text(option)]
    if str(data) in options:
        return [f"data={data}"]
    if not os.path.exists(os.path.expanduser(data)):
        raise UserError(f"data={data}: neither a path to text nor a corpus; {suggestion(str(data), options)}")
    return ["data=text", *quote_paths([f"data.train={data}"])]


def _is_text(option: str) -> bool:
    """Return whether an option of data= is for language models."""
    import yaml

    from natattn.training.settings import DATA_KINDS

    content = yaml.safe_load((conf_folder() / "data" / f"{option}.yaml").read_text(encoding="utf-8"))
    return content["kind"] in DATA_KINDS["language"]


def _new_folder() -> Path:
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_train_models"
    names = (stem if count == 1 else f"{stem}_{count}" for count in range(1, 1000))
    return next(path for name in names if not (path := Path("outputs") / name).exists())


def _load(folder: Path, arm: str, attention: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    from natattn.models.pretrained import without_progress_bars

    saved = folder / "arms" / arm / "model"
    if not saved.is_dir():
        raise RuntimeError(f"the {arm} model diverged: see {folder}")
    with without_progress_bars():  # a model is loaded in eval mode
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            saved, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    return model
