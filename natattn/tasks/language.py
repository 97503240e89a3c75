"""Language modelling: predict the next token with a causal model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from natattn.attention.energy import working_dtype
from natattn.config.base import Settings
from natattn.data import (
    Batches,
    DataSettings,
    PackingSettings,
    TokenizedCorpus,
    TokenizerSettings,
    TokenSplit,
    bigram_entropy,
    evaluation_batches,
    held_out_bigram_entropy,
    pack,
    prepare,
    unigram_entropy,
)
from natattn.data.text.blocks import IGNORED_LABEL, check_length
from natattn.distributed.ranks import Ranks
from natattn.models.gpt2 import build_model
from natattn.models.settings import InitSettings, ModelSettings, SizeSettings
from natattn.tasks.base import Autocast, Batch, BatchSlice, CorpusTask, HeldOut, MetricSums, round_robin

PROBE_SEQUENCES = 8


class LanguageSettings(Settings):
    """Next-token prediction."""

    kind: Literal["language"]

    @property
    def learning_rate_scale(self) -> float:
        """Factor on the learning rates of conf/optim, which are tuned on language."""
        return 1.0


@dataclass(frozen=True)
class LanguageTask(CorpusTask):
    """Next-token prediction on a corpus.

    Attributes:
        label_shift: distance in tokens from an input to its label; 2 only to reproduce the published mistake.

    Raises: UserError if a split, or a row of it, is shorter than one window.
    """

    corpus: TokenizedCorpus
    size: SizeSettings
    init: InitSettings
    context: int
    batch_size: int
    seed: int
    sampling: Literal["random", "epochs"]
    label_shift: int = 1

    kind: ClassVar[str] = "language"
    unit: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split = getattr(self.corpus, name)
            if split is not None:
                check_length(split, self.context, f"the {name} text")

    @property
    def units_per_step(self) -> int:
        """Number of predicted tokens in one update."""
        return self.batch_size * self.context

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self.corpus.train, self.batch_size, self.context, self.seed, self.sampling)

    def initial_model(self, model: ModelSettings) -> nn.Module:
        """Build a GPT-2 of the run's size, or load the pretrained model."""
        return build_model(
            model,
            self.size,
            self.init,
            vocab_size=self.corpus.tokenizer.vocab_size,
            end_token_id=self.corpus.tokenizer.end_token_id,
            seed=self.seed,
        )

    def batch(self, step: int, part: BatchSlice) -> Tensor:
        """Return int64 tokens [sequences, context + 1]."""
        return torch.from_numpy(self._batches.batch(step, **vars(part)))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return all tokens but the last."""
        assert isinstance(batch, Tensor)
        return {"input_ids": batch[:, :-1], "use_cache": False}

    def loss(self, outputs: Any, batch: Batch, model: Any) -> Tensor:
        """Return the mean next-token loss in nats; labels are shifted here, once."""
        assert isinstance(batch, Tensor)
        return self.cross_entropy(outputs.logits, batch[:, 1:], reduction="mean")

    def cross_entropy(self, logits: Tensor, following: Tensor, *, reduction: str) -> Tensor:
        """Return the cross-entropy in nats of logits [batch, context, vocabulary] with the following tokens.

        Labels of −100 are ignored.
        """
        extra = self.label_shift - 1
        logits, labels = logits[:, : logits.shape[1] - extra], following[:, extra:]
        logits = logits.to(working_dtype(logits)).flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels.flatten(), reduction=reduction)

    def evaluate(
        self, model: Any, split: HeldOut, *, autocast: Autocast, batch_size: int, device: torch.device, ranks: Ranks
    ) -> dict[str, float]:
        """Return the mean loss in nats/token; every token but the first is predicted exactly once."""
        text = self.held_out(split)
        sums = MetricSums(device, ranks)
        for (inputs, labels), counted in round_robin(
            evaluation_batches(text, batch_size=batch_size, context=self.context), ranks
        ):
            with autocast():
                logits = model(input_ids=torch.from_numpy(inputs).to(device), use_cache=False).logits
            loss = self.cross_entropy(logits, torch.from_numpy(labels).to(device), reduction="sum")
            count = int((labels[:, self.label_shift - 1 :] != IGNORED_LABEL).sum())
            sums.add({"loss": loss, "count": count}, counted=counted)
        totals = sums.read()
        return {"loss": float(totals["loss"]) / int(totals["count"])}

    def probe_inputs(self, device: torch.device) -> dict[str, Any]:
        """Return the first full windows of the validation split."""
        return {"input_ids": first_sequences(self.corpus.validation, self.context, device), "use_cache": False}

    def examples(self, outputs: Any) -> Tensor:
        """Return logits [sequences, tokens, vocabulary]."""
        logits: Tensor = outputs.logits
        return logits

    def data_summary(self) -> dict[str, Any]:
        """Return sizes of the text and the entropies of n-gram models."""
        corpus = self.corpus
        tokens, vocab_size = corpus.validation.tokens, corpus.tokenizer.vocab_size
        return {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "vocab_size": vocab_size,
            "validation_tokens": len(tokens),
            "validation_bytes": corpus.validation.byte_count,
            "unigram_entropy": unigram_entropy(tokens, vocab_size),
            "held_out_bigram_entropy": held_out_bigram_entropy(corpus.train.tokens, tokens, vocab_size),
            "plug_in_bigram_entropy": bigram_entropy(tokens, vocab_size),
            "floor": corpus.floor,
        }

    def save_beside(self, folder: Path) -> None:
        """Save the tokenizer."""
        self.corpus.tokenizer.save(folder)


def prepare_text(
    data: DataSettings, tokenizer: TokenizerSettings, packing: PackingSettings, *, progress: bool = True
) -> TokenizedCorpus:
    """Return the tokens of a run, packed in one stream or in rows."""
    return pack(prepare(data, tokenizer, progress=progress), data, packing)


def first_sequences(split: TokenSplit, context: int, device: torch.device) -> Tensor:
    """Return the first full windows of a split, int64 [sequences, context]."""
    inputs, labels = next(evaluation_batches(split, batch_size=PROBE_SEQUENCES, context=context))
    whole = (labels != IGNORED_LABEL).all(axis=1)
    return torch.from_numpy(inputs[whole] if whole.any() else inputs).to(device)
