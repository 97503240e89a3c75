"""Contrastive image–text training with two towers that share an embedding space."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from natattn.attention.energy import working_dtype
from natattn.config.base import Settings
from natattn.data.images import PairCorpus, PairDataSettings, PairSplit
from natattn.data.text.blocks import part_of_batch, sample_indices
from natattn.distributed.ranks import Ranks
from natattn.errors import UserError
from natattn.models.dual_encoder import build_dual_encoder
from natattn.models.settings import ModelSettings, SizeSettings
from natattn.tasks.base import Autocast, Batch, BatchSlice, HeldOut, MetricSums, round_robin
from natattn.tasks.vision import ImageOptions, moved, save_image_processor

PROBE_PAIRS = 8
RECALLS = (1, 5)
CLIP_LEGACY_END = 2  # the end token of early CLIP configurations, which transformers treats specially


class MultimodalSettings(Settings):
    """A ViT on patches of ``patch_size`` pixels, CLIP's text tower, and a learned temperature of the cosines.

    Attributes:
        learning_rate_scale: as in ``VisionSettings``.
    """

    kind: Literal["multimodal"]
    patch_size: int = Field(ge=1)
    initial_temperature: float = Field(gt=0)
    learning_rate_scale: float = Field(gt=0)


@dataclass(frozen=True)
class MultimodalTask(ImageOptions):
    """Contrastive training on pairs of image and caption.

    Raises: UserError if a caption is longer than ``size.context``.
    """

    corpus: PairCorpus
    data: PairDataSettings
    settings: MultimodalSettings
    size: SizeSettings
    batch_size: int
    seed: int
    sampling: Literal["random", "epochs"]
    dtype: torch.dtype = torch.float32

    kind: ClassVar[str] = "multimodal"
    unit: ClassVar[str] = "pair"

    def __post_init__(self) -> None:
        longest = self.corpus.longest
        if self.corpus.tokenizer.end_token_id == CLIP_LEGACY_END:
            raise UserError(
                f"tokenizer.kind: its end token is {CLIP_LEGACY_END}, for which transformers' CLIP uses the largest "
                "token of a caption as its end; valid: tokenizer=bpe, tokenizer=byte, or another"
            )
        if self.size.context is not None and self.size.context < longest:
            raise UserError(
                f"size.context={self.size.context}: the longest caption has {longest} tokens; "
                f"valid: at least {longest}, or null for exactly that"
            )

    def initial_model(self, model: ModelSettings) -> nn.Module:
        """Build both towers of the run's size."""
        tokenizer = self.corpus.tokenizer
        return build_dual_encoder(
            model,
            self.size,
            image_size=self.corpus.image_size,
            channels=self.corpus.channels,
            patch_size=self.settings.patch_size,
            vocab_size=tokenizer.vocab_size,
            context=self.size.context or self.corpus.longest,
            end_token_id=tokenizer.end_token_id,
            initial_temperature=self.settings.initial_temperature,
            seed=self.seed,
        )

    def batch(self, step: int, part: BatchSlice) -> dict[str, Tensor]:
        """Return uint8 images [pairs, H, W, C], int64 tokens [pairs, longest], lengths [pairs] and groups [pairs]."""
        first, count = part_of_batch(step, self.batch_size, **vars(part))
        split = self.corpus.train
        pairs = sample_indices(self.seed, self.sampling, first, count, len(split))
        batch = _pairs(split, pairs)
        images = moved(batch["images"].numpy(), self.data, self.seed, first)
        return {**batch, "images": torch.from_numpy(images)}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return standardised pixels, captions followed by an end token, and the mask of their tokens."""
        assert isinstance(batch, dict)
        tokens = batch["tokens"].roll(-1, dims=1)  # moves the leading end token to the end
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return {
            "pixel_values": self.scaling.pixel_values(batch["images"]),
            "input_ids": tokens,
            "attention_mask": (positions < batch["lengths"][:, None]).long(),
        }

    def loss(self, outputs: Any, batch: Batch, model: Any) -> Tensor:
        """Return the contrastive loss of a batch in nats/pair; see ``contrastive_loss``."""
        assert isinstance(batch, dict)
        cosines = cosines_of(outputs.image_embeds, outputs.text_embeds)
        return contrastive_loss(cosines * model.logit_scale.exp().to(cosines.dtype), batch["groups"])

    def evaluate(
        self, model: Any, split: HeldOut, *, autocast: Autocast, batch_size: int, device: torch.device, ranks: Ranks
    ) -> dict[str, float]:
        """Return loss in nats/pair and recall@1 and @5 in both directions, averaged over the split's galleries."""
        pairs: PairSplit = self.held_out(split)
        sums = MetricSums(device, ranks)
        for gallery, counted in round_robin(_galleries(len(pairs), self.corpus.gallery), ranks):
            images, texts = [], []
            for start in range(0, len(gallery), batch_size):
                batch = _pairs(pairs, gallery[start : start + batch_size])
                with autocast():
                    outputs = model(**self.inputs({name: tensor.to(device) for name, tensor in batch.items()}))
                images.append(outputs.image_embeds)
                texts.append(outputs.text_embeds)
            groups = torch.from_numpy(pairs.groups[gallery]).to(device)
            first_of_image = torch.from_numpy(np.unique(pairs.image_of[gallery], return_index=True)[1]).to(device)
            values = gallery_metrics(
                torch.cat(images), torch.cat(texts), groups, first_of_image, model.logit_scale.exp()
            )
            sums.add({**values, "count": 1}, counted=counted)
        totals = sums.read()
        count = float(totals.pop("count"))
        return {name: float(total) / count for name, total in totals.items()}

    def probe_inputs(self, device: torch.device) -> dict[str, Any]:
        """Return the first pairs of the validation split."""
        validation = self.corpus.validation
        batch = _pairs(validation, np.arange(min(PROBE_PAIRS, len(validation))))
        return self.inputs({name: tensor.to(device) for name, tensor in batch.items()})

    def examples(self, outputs: Any) -> Tensor:
        """Return the embeddings of both towers, [pairs, 2 · width]."""
        return torch.cat([outputs.image_embeds, outputs.text_embeds], -1)

    def data_summary(self) -> dict[str, Any]:
        """Return numbers of pairs, and the metrics of guessing."""
        validation = self.corpus.validation
        gallery = self.corpus.gallery or len(validation)
        return {
            "name": self.corpus.name,
            "fingerprint": self.corpus.fingerprint,
            "vocab_size": self.corpus.tokenizer.vocab_size,
            "train_pairs": len(self.corpus.train),
            "validation_pairs": len(validation),
            "test_pairs": len(self.corpus.test) if self.corpus.test is not None else 0,
            "gallery": gallery,
            "chance": chance(validation, np.arange(gallery)),
        }

    def save_beside(self, folder: Path) -> None:
        """Save the tokenizer and the image preprocessing."""
        self.corpus.tokenizer.save(folder)
        save_image_processor(folder, self.corpus.image_size, self.corpus.mean, self.corpus.std)


def cosines_of(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """Return the cosines of unit vectors, [images, captions], at least in float32: bfloat16 would create ties."""
    return image_embeddings.to(working_dtype(image_embeddings)) @ text_embeddings.to(working_dtype(text_embeddings)).T


def contrastive_loss(logits_per_image: Tensor, groups: Tensor) -> Tensor:
    """Return ½ (mean cross-entropy over images + over captions) of logits [pairs, pairs], in nats.

    The target of an image is uniform over the captions of its group, and vice versa. If every pair is its own group,
    this is CLIP's loss (Radford et al. 2021, figure 3), otherwise the supervised contrastive loss (Khosla et al. 2020,
    equation 2) between two towers.

    Args:
        groups: int64 [pairs].
    """
    logits = logits_per_image.to(working_dtype(logits_per_image))
    targets = (groups[:, None] == groups[None]).to(logits.dtype)
    targets = targets / targets.sum(1, keepdim=True)
    both = nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets)
    return both / 2


def gallery_metrics(
    image_embeddings: Tensor, text_embeddings: Tensor, groups: Tensor, first_of_image: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    """Return loss (nats/pair) and recalls of one gallery.

    recall@k is the fraction of pairs with one of the k nearest captions (images), by cosine, in its group. An image
    that several captions share is a candidate once.

    Args:
        image_embeddings, text_embeddings: unit vectors [pairs, width].
        groups: int64 [pairs].
        first_of_image: index of one pair of each image, int64 [images].
        scale: factor on the cosines in the loss.
    """
    cosines = cosines_of(image_embeddings, text_embeddings)
    metrics: dict[str, Tensor] = {"loss": contrastive_loss(cosines * scale.to(cosines.dtype), groups)}
    ways = {
        "image_to_text": (cosines, groups),
        "text_to_image": (cosines.T[:, first_of_image], groups[first_of_image]),
    }
    for way, (scores, candidates) in ways.items():
        nearest = candidates[scores.topk(min(max(RECALLS), scores.shape[1]), dim=1).indices]
        hits = nearest == groups[:, None]
        for k in RECALLS:
            metrics[f"{way}_recall_{k}"] = hits[:, :k].any(1).to(torch.float64).mean()
    return metrics


def chance(split: PairSplit, gallery: np.ndarray) -> dict[str, float]:
    """Return the loss (nats/pair) and the recalls of random guessing on one gallery.

    If ``hits`` of n candidates match, k random ones contain a match with probability 1 − C(n − hits, k) / C(n, k).
    """
    groups = split.groups[gallery]
    of_images = groups[np.unique(split.image_of[gallery], return_index=True)[1]]
    result = {"loss": math.log(len(gallery))}
    for way, candidates in (("image_to_text", groups), ("text_to_image", of_images)):
        values, counts = np.unique(candidates, return_counts=True)
        hits = counts[np.searchsorted(values, groups)]
        for k in RECALLS:
            missed = [_chance_to_miss(len(candidates), int(number), k) for number in hits]
            result[f"{way}_recall_{k}"] = 1 - math.fsum(missed) / len(missed)
    return result


def _chance_to_miss(candidates: int, hits: int, drawn: int) -> float:
    return math.comb(candidates - hits, drawn) / math.comb(candidates, min(drawn, candidates))


def _galleries(pairs: int, size: int | None) -> Iterator[np.ndarray]:
    """Yield the indices of the pairs of each gallery."""
    step = size or pairs
    for start in range(0, pairs, step):
        yield np.arange(start, min(start + step, pairs))


def _pairs(split: PairSplit, indices: np.ndarray) -> dict[str, Tensor]:
    return {
        "images": torch.from_numpy(np.array(split.images[split.image_of[indices]])),
        "tokens": torch.from_numpy(split.tokens[indices]),
        "lengths": torch.from_numpy(split.lengths[indices]),
        "groups": torch.from_numpy(split.groups[indices]),
    }
