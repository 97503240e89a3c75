"""Subjects of runs of other tasks: a vision transformer with its images, or one tower of a pair."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natattn.analysis.settings import AnalyzeSettings
from natattn.data import Tokenizer
from natattn.errors import UserError
from natattn.tasks import MultimodalTask, VisionTask
from natattn.training.build import open_task
from natattn.training.settings import RunSettings


@dataclass(frozen=True, eq=False)
class Read:
    """A model and what it reads of a validation split; as the fields of ``Subject``, and a line about it."""

    model: Any
    tokens: Tensor
    words: list[str]
    tokenizer: Tokenizer | None
    line: str


def read_by_tower(settings: AnalyzeSettings, saved: RunSettings, model: Any) -> Read:
    """A run's model, or its tower, and what that reads.

    Raises: UserError for a tower that the run does not have, or captions all different in length.
    """
    task = open_task(saved)
    if isinstance(task, VisionTask):
        if settings.tower is not None:
            raise UserError(f"tower={settings.tower}: run {settings.run} has one tower; valid: null")
        return _images(model, task, settings.text.sequences)
    assert isinstance(task, MultimodalTask)
    if settings.tower == "text":
        return _captions(model.text_model, task, settings.text.sequences)
    return _images(model.vision_model, task, settings.text.sequences)


def _images(model: Any, task: VisionTask | MultimodalTask, count: int) -> Read:
    images = torch.from_numpy(np.array(task.corpus.validation.images[:count]))
    side = task.corpus.image_size // task.settings.patch_size
    words = ["[CLS]", *(f"{row},{column}" for row in range(side) for column in range(side))]
    line = f"{task.corpus.name}, {len(images)} images × {len(words)} tokens of its validation split"
    return Read(model, task.scaling.pixel_values(images), words, None, line)


def _captions(model: Any, task: MultimodalTask, count: int) -> Read:
    """Captions of the commonest length, so that none is padded."""
    validation, tokenizer = task.corpus.validation, task.corpus.tokenizer
    lengths, counts = np.unique(validation.lengths, return_counts=True)
    length = int(lengths[np.argmax(counts)])
    chosen = np.flatnonzero(validation.lengths == length)[:count]
    if len(chosen) < 2:
        raise UserError("tower=text: no two captions of the validation split are of one length; valid: tower=vision")
    tokens = np.roll(validation.tokens[chosen, :length], -1, axis=1)  # the end token behind the caption, as in training
    words = [tokenizer.decode([int(token)]) for token in tokens[0]]
    line = f"{task.corpus.name}, {len(chosen)} captions × {length} tokens of its validation split"
    return Read(model, torch.from_numpy(tokens), words, tokenizer, line)
