"""Image classification with a vision transformer."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from natattn.attention.energy import working_dtype
from natattn.config.base import Settings
from natattn.data.images import ImageCorpus, ImageDataSettings, ImageSplit, PairDataSettings, augmented
from natattn.data.text.blocks import part_of_batch, sample_indices
from natattn.distributed.ranks import Ranks
from natattn.models.settings import InitSettings, ModelSettings, SizeSettings
from natattn.models.vit import build_vit
from natattn.storage.atomic import replacing
from natattn.tasks.base import Autocast, Batch, BatchSlice, CorpusTask, HeldOut, MetricSums, round_robin

PROBE_IMAGES = 8
CALIBRATION_BINS = 15


class VisionSettings(Settings):
    """Image classification by a ViT on patches of ``patch_size`` × ``patch_size`` pixels.

    Attributes:
        learning_rate_scale: factor on every learning rate of both arms; those of conf/optim are tuned on language.
    """

    kind: Literal["vision"]
    patch_size: int = Field(ge=1)
    learning_rate_scale: float = Field(gt=0)


class ImageOptions(CorpusTask):
    """Common settings and data of tasks on images."""

    dtype: torch.dtype

    @cached_property
    def scaling(self) -> "Scaling":
        """Standardisation of pixels."""
        return Scaling(self.corpus.mean, self.corpus.std, self.dtype)


@dataclass(frozen=True)
class VisionTask(ImageOptions):
    """Classification on a corpus of labelled images."""

    corpus: ImageCorpus
    data: ImageDataSettings
    settings: VisionSettings
    size: SizeSettings
    init: InitSettings
    batch_size: int
    seed: int
    sampling: Literal["random", "epochs"]
    dtype: torch.dtype = torch.float32

    kind: ClassVar[str] = "vision"
    unit: ClassVar[str] = "image"

    def initial_model(self, model: ModelSettings) -> nn.Module:
        """Build a ViT of the run's size, or load the pretrained classifier."""
        return build_vit(
            model,
            self.size,
            self.init,
            image_size=self.corpus.image_size,
            channels=self.corpus.channels,
            patch_size=self.settings.patch_size,
            classes=self.corpus.classes,
            seed=self.seed,
        )

    def batch(self, step: int, part: BatchSlice) -> dict[str, Tensor]:
        """Return augmented uint8 images [images, height, width, channels] and int64 labels [images]."""
        first, count = part_of_batch(step, self.batch_size, **vars(part))
        split = self.corpus.train
        indices = sample_indices(self.seed, self.sampling, first, count, len(split))
        images = moved(split.images[indices], self.data, self.seed, first)
        return {"images": torch.from_numpy(images), "labels": torch.from_numpy(split.labels[indices])}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return standardised pixels [images, channels, height, width]."""
        assert isinstance(batch, dict)
        return {"pixel_values": self.scaling.pixel_values(batch["images"])}

    def loss(self, outputs: Any, batch: Batch, model: Any) -> Tensor:
        """Return the mean cross-entropy in nats/image."""
        assert isinstance(batch, dict)
        logits = outputs.logits.to(working_dtype(outputs.logits))
        return nn.functional.cross_entropy(logits, batch["labels"])

    def evaluate(
        self, model: Any, split: HeldOut, *, autocast: Autocast, batch_size: int, device: torch.device, ranks: Ranks
    ) -> dict[str, float]:
        """Return loss in nats/image, accuracy and expected calibration error."""
        data: ImageSplit = self.held_out(split)
        sums = MetricSums(device, ranks)
        for start, counted in round_robin(range(0, len(data), batch_size), ranks):
            images = torch.from_numpy(np.array(data.images[start : start + batch_size])).to(device)
            labels = torch.from_numpy(data.labels[start : start + batch_size]).to(device)
            with autocast():
                logits = model(pixel_values=self.scaling.pixel_values(images)).logits
            sums.add(classification_sums(logits.to(working_dtype(logits)), labels), counted=counted)
        return classification_metrics(sums.read())

    def probe_inputs(self, device: torch.device) -> dict[str, Any]:
        """Return the first images of the validation split."""
        images = np.array(self.corpus.validation.images[:PROBE_IMAGES])
        return {"pixel_values": self.scaling.pixel_values(torch.from_numpy(images).to(device))}

    def examples(self, outputs: Any) -> Tensor:
        """Return logits [images, classes]."""
        logits: Tensor = outputs.logits
        return logits

    def data_summary(self) -> dict[str, Any]:
        """Return numbers of images and classes, and the metrics of predicting the class frequencies."""
        train, validation = self.corpus.train, self.corpus.validation
        return {
            "name": self.corpus.name,
            "fingerprint": self.corpus.fingerprint,
            "classes": len(self.corpus.classes),
            "train_images": len(train),
            "validation_images": len(validation),
            "test_images": len(self.corpus.test) if self.corpus.test is not None else 0,
            "chance": chance(train, validation, len(self.corpus.classes)),
        }

    def save_beside(self, folder: Path) -> None:
        """Save preprocessor_config.json, from which transformers builds the image processor."""
        save_image_processor(folder, self.corpus.image_size, self.corpus.mean, self.corpus.std)


def moved(images: np.ndarray, data: ImageDataSettings | PairDataSettings, seed: int, first: int) -> np.ndarray:
    """Return training images shifted and flipped; ``first`` is the global index of the first."""
    return augmented(images, shift=data.shift, flip=data.flip, fill=data.fill, seed=seed, first_sample=first)


class Scaling:
    """uint8 pixels → (pixel/255 − mean)/std, with the train split's mean and standard deviation of each channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> None:
        self._mean, self._std = (torch.tensor(values, dtype=dtype) for values in (mean, std))

    def pixel_values(self, images_BHWC: Tensor) -> Tensor:
        """Return standardised pixels [B, C, H, W] on the images' device."""
        device = images_BHWC.device
        if self._mean.device != device:
            self._mean, self._std = self._mean.to(device), self._std.to(device)
        scaled = (images_BHWC.to(self._mean.dtype) / 255 - self._mean) / self._std
        return scaled.permute(0, 3, 1, 2).contiguous()


def classification_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor | int]:
    """Return the sums that loss, accuracy and calibration need, from logits [images, classes] and labels [images].

    ``bin_*`` [CALIBRATION_BINS] are over equal bins of the confidence, the largest probability.
    """
    confidence, predicted = torch.softmax(logits, -1).max(-1)
    correct = (predicted == labels).to(torch.float64)
    bins = (confidence * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    empty = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=logits.device)
    return {
        "loss": nn.functional.cross_entropy(logits, labels, reduction="sum"),
        "correct": correct.sum(),
        "count": len(labels),
        "bin_correct": empty.index_add(0, bins, correct),
        "bin_confidence": empty.index_add(0, bins, confidence.to(torch.float64)),
    }


def classification_metrics(sums: dict[str, Tensor]) -> dict[str, float]:
    """Return mean loss (nats), accuracy, and expected calibration error Σ_b |correct_b − confidence_b| / count.

    The latter is equation 3 of Guo et al., On Calibration of Modern Neural Networks (2017), with equal bins.
    """
    count = float(sums["count"])
    return {
        "loss": float(sums["loss"]) / count,
        "accuracy": float(sums["correct"]) / count,
        "calibration_error": float((sums["bin_correct"] - sums["bin_confidence"]).abs().sum()) / count,
    }


def chance(train: ImageSplit, validation: ImageSplit, classes: int) -> dict[str, float]:
    """Return loss and accuracy on the validation split of predicting the train split's add-one class frequencies."""
    frequencies = np.bincount(train.labels, minlength=classes) + 1.0
    frequencies /= frequencies.sum()
    losses = -np.log(frequencies[validation.labels])
    accuracy = np.mean(validation.labels == int(np.argmax(frequencies)))
    return {"loss": math.fsum(losses) / len(losses), "accuracy": float(accuracy)}


def save_image_processor(folder: Path, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write the cropping, resizing and scaling of images as a configuration of transformers' ``CLIPImageProcessor``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": len(mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    with replacing(folder / "preprocessor_config.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
