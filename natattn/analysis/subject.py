"""Subject of `natattn analyze`: a model, from a run or pretrained, and its inputs: tokens or images."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from natattn.analysis.patterns import LONGEST_PATTERN, model_inputs
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.task_subject import Read, read_by_tower
from natattn.attention.layers import attention_layers
from natattn.attention.stabilisers import restore_stabilisers
from natattn.config.messages import first_line
from natattn.data import TokenSplit, prepare
from natattn.data.text.tokenizers import Tokenizer
from natattn.errors import UserError
from natattn.models.pretrained import without_progress_bars, without_reports
from natattn.models.settings import PretrainedInit
from natattn.models.trust import check_trust
from natattn.storage.atomic import pretrained_source
from natattn.training.run_folder import CONFIG, read_config, trained_arm
from natattn.training.settings import RunSettings

LONGEST_BY_DEFAULT = 256


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in evaluation mode, and sequences of tokens, or images, for it.

    Attributes:
        name: for titles and folders.
        facts: what it is, for the top of the page.
        tokens: int64 [sequences, context]; of a vision model pixels [images, channels, height, width].
        words: the tokens of the first sequence as text; of an image its patches.
        tokenizer: of the text; None of images.
        data: where the text is from; of a run, what it was trained on.
        is_causal: every self-attention layer hides the future.
        source: what the model was read from, for telling whether an analysis can go on: a file's size and time.
    """

    name: str
    facts: dict[str, str]
    model: Any
    tokens: Tensor
    words: list[str]
    tokenizer: Tokenizer | None
    data: Any
    is_causal: bool
    source: str

    @property
    def predicts_tokens(self) -> bool:
        """A causal language model: it has a loss."""
        return self.is_causal and self.model.get_output_embeddings() is not None

    @property
    def reads_images(self) -> bool:
        """A vision model."""
        return self.tokens.ndim == 4

    @property
    def is_encoder_decoder(self) -> bool:
        """A model of two sequences; both are shown the same text."""
        return bool(getattr(self.model.config, "is_encoder_decoder", False))

    def inputs(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the model's inputs for a part of ``tokens``."""
        inputs = model_inputs(batch)
        return {**inputs, "decoder_input_ids": batch} if self.is_encoder_decoder else inputs

    def batches(self, size: int) -> Iterator[Tensor]:
        """All of ``tokens`` on the model's device, so many sequences or images at a time."""
        yield from torch.split(self.tokens.to(next(self.model.parameters()).device), size)

    def beginning(self, count: int) -> Tensor:
        """The first sequences, cut where whole patterns would be too large; or the first images."""
        return self.tokens[:count] if self.reads_images else self.tokens[:count, :LONGEST_PATTERN]


def has_one_sequence(subject: Subject) -> bool:
    """Return whether the model attends from one sequence to itself: false for an encoder with a decoder."""
    return not subject.is_encoder_decoder


def reads_text(subject: Subject) -> bool:
    """Return whether the model reads one sequence of text: patches of an image have no order along which to measure."""
    return not subject.is_encoder_decoder and not subject.reads_images


def load_subject(settings: AnalyzeSettings, device: torch.device) -> Subject:
    """The model and text that the settings name.

    Raises: UserError where one of them is not there, or they do not fit together.
    """
    data: Any
    tokenizer: Any
    if settings.run is not None:
        if isinstance(settings.init, PretrainedInit):
            raise UserError(f"run={settings.run} init=pretrained: two models; leave out one of them")
        saved, folder, name = _of_run(settings)
        if saved.task.kind != "language":
            return _of_task(settings, saved, folder, name, device)
        if settings.tower is not None:
            raise UserError(f"tower={settings.tower}: run {settings.run} has one tower; valid: null")
        data, tokenizer = saved.data, saved.tokenizer
    elif isinstance(settings.init, PretrainedInit):
        folder, data, tokenizer = settings.init.path, settings.data, settings.tokenizer
        name = Path(settings.init.path).name or settings.init.path
    else:
        raise UserError("nothing to look at; give run=FOLDER, or init=pretrained init.path=FOLDER|HUB_NAME")
    model = _load_model(folder).to(device).eval()
    vocabulary = _vocabulary(model, folder)
    corpus = prepare(data, tokenizer)
    if corpus.tokenizer.vocab_size > vocabulary:
        raise UserError(
            f"tokenizer: {corpus.tokenizer.vocab_size} tokens for a model that knows {vocabulary}; use the model's own"
        )
    context = _context(settings, model)
    tokens = torch.from_numpy(_sequences(corpus.validation, settings.text.sequences, context))
    words = [corpus.tokenizer.decode([int(token)]) for token in tokens[0]]
    line = f"{corpus.name}, {len(tokens)} sequences × {context} tokens of its validation split"
    return _subject(Read(model, tokens, words, corpus.tokenizer, line), "text", folder, name, data)


def _of_task(settings: AnalyzeSettings, saved: RunSettings, folder: str, name: str, device: torch.device) -> Subject:
    """The subject of a run of another task than language."""
    read = read_by_tower(settings, saved, _load_model(folder).eval())
    _check_weights(read.model.to(device), folder)
    if saved.task.kind == "multimodal":
        name = f"{name}_{settings.tower or 'vision'}"
    return _subject(read, "read", folder, name, saved.data)


def _subject(read: Read, what: Literal["text", "read"], folder: str, name: str, data: Any) -> Subject:
    """The subject of a model that is loaded, and of what it reads."""
    model, layers = read.model, attention_layers(read.model)
    facts = {
        "model": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "from": folder,
        "self-attention": f"{len(layers)} layers × {model.config.num_attention_heads} heads",
        what: read.line,
    }
    is_causal = all(bool(layer.module.is_causal) for layer in layers)
    digest = hashlib.sha256(read.tokens.numpy().tobytes()).hexdigest()
    source = f"natattn {_version()}, {_state_of(folder)}, {'tokens' if what == 'text' else 'inputs'} {digest}"
    return Subject(name, facts, model, read.tokens, read.words, read.tokenizer, data, is_causal, source)


def _check_weights(model: Any, folder: str) -> None:
    """Raises: UserError for weights that are no numbers."""
    broken = [key for key, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(f"{folder}: {len(broken)} weights are not finite, {broken[0]} among them")


def _vocabulary(model: Any, folder: str) -> int:
    """Return the size of the model's vocabulary.

    Raises: UserError for one that reads no tokens, has no attention or numbers that are none.
    """
    name = type(model).__name__
    try:
        shape = model.get_input_embeddings().weight.shape
    except (AttributeError, NotImplementedError):
        shape = ()
    if len(shape) != 2:
        raise UserError(f"{folder}: {name} reads no tokens; valid: language models and encoders of text")
    if not attention_layers(model):
        raise UserError(f"{folder}: {name} has no attention layers that can be observed")
    _check_weights(model, folder)
    return int(shape[0])


def _of_run(settings: AnalyzeSettings) -> tuple[RunSettings, str, str]:
    """The run's settings, and its arm's folder and name."""
    run = Path(str(settings.run))
    arm, folder = trained_arm(run, settings.arm)
    try:
        saved = RunSettings.model_validate(read_config(run))
    except ValidationError as error:
        raise UserError(f"{run / CONFIG}: {first_line(error)}") from error
    return saved, str(folder), f"{run.name}_{arm}"


def _load_model(folder: str) -> Any:
    """A causal language model or an image classifier where the architecture has one, else the bare model."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
    )

    from natattn.models.registry import register_architectures

    register_architectures()
    try:
        with without_progress_bars(), without_reports():
            source, options = pretrained_source(folder)
            if not options:  # what is no GGUF file
                check_trust(source)
            found = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
            # A GGUF file does not name the class; what is converted to that format generates.
            is_decoder = type(found) in MODEL_FOR_CAUSAL_LM_MAPPING and (bool(options) or _generates(found))
            loader: Any = AutoModelForCausalLM if is_decoder else AutoModel
            if type(found) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
                loader = AutoModelForImageClassification
            model = loader.from_pretrained(
                source,
                config=found,
                trust_remote_code=False,
                dtype=torch.float32,
                use_safetensors=None if options else True,
                **options,
            )
        restore_stabilisers(model)
        return model
    except Exception as error:  # transformers raises whatever its readers do
        raise UserError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error


def _generates(found: Any) -> bool:
    """Encoders are listed among causal models too, for those who set is_decoder."""
    names = getattr(found, "architectures", None) or []
    return bool(getattr(found, "is_decoder", False)) or any(
        name.endswith(("ForCausalLM", "LMHeadModel")) for name in names
    )


def _context(settings: AnalyzeSettings, model: Any) -> int:
    longest = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    context = settings.text.context or min(longest or LONGEST_BY_DEFAULT, LONGEST_BY_DEFAULT)
    if longest is not None and context > longest:
        raise UserError(f"text.context={context}: the model has room for {longest} tokens; valid: at most {longest}")
    return int(context)


def _sequences(split: TokenSplit, count: int, context: int) -> np.ndarray:
    """Windows without overlap, evenly spread over the split."""
    available = len(split.tokens) // context
    if available < 2:
        raise UserError(
            f"text.context={context}: the validation split has {len(split.tokens)} tokens, fewer than two such "
            "sequences; valid: more text or a shorter context"
        )
    starts = np.linspace(0, available - 1, min(count, available)).round().astype(int) * context
    return np.stack([split.tokens[start : start + context].astype(np.int64) for start in starts])


def _version() -> str:
    try:
        return installed_version("natattn")
    except PackageNotFoundError:
        return "checkout"


def _state_of(folder: str) -> str:
    path = Path(os.path.expanduser(folder))
    files = [path] if path.is_file() else [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.bin"))]
    return ", ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files) or folder
