"""Corpora of labelled and of captioned images: the available kinds, and their preparation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from natattn.data.cache import cache_root
from natattn.data.images.digits import DigitScenesSettings, DigitsSettings, make_scenes, read_digits
from natattn.data.images.files import CaptionFilesSettings, ImageFolderSettings, read_caption_files, read_folder
from natattn.data.images.hub import CaptionHubSettings, ImageHubSettings, read_caption_hub, read_hub
from natattn.data.images.sources import Captioned, CaptionedPixels, Labelled
from natattn.data.progress import Progress
from natattn.data.text.tokenized import build_tokenizer
from natattn.data.text.tokenizers import Tokenizer, TokenizerSettings
from natattn.storage.documents import hash_of


class _ImageSizes:
    """Sizes of the images of a corpus."""

    train: "ImageSplit | PairSplit"

    @property
    def image_size(self) -> int:
        """Return height and width in pixels."""
        return int(self.train.images.shape[1])

    @property
    def channels(self) -> int:
        """Return 1 for grey, 3 for RGB."""
        return int(self.train.images.shape[3])


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split of labelled images.

    `images`: uint8 [count, height, width, channels], memory-mapped if they were read from files.
    `labels`: int64 [count], indices into the corpus's classes.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageCorpus(_ImageSizes):
    """Images to classify.

    `mean`, `std`: of each channel of the train split, pixels in 0 … 1; std is 1 for a constant channel.
    `fingerprint`: hash of the pixels, labels and class names of all splits.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


@dataclass(frozen=True, eq=False)
class PairSplit:
    """One split of captioned images; a pair is one caption with its image.

    `images`: uint8 [images, height, width, channels], memory-mapped if they were read from files.
    `image_of`: int64 [pairs], the image of each caption.
    `tokens`: int64 [pairs, longest]: the end token (where a text tower pools), the caption's tokens, then end tokens as
    padding.
    `lengths`: int64 [pairs], number of tokens without padding, including the first.
    `groups`: int64 [pairs]; pairs of one group have the same meaning: each caption fits each image of the group.
    `captions`: the text of each pair.
    """

    images: np.ndarray
    image_of: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_of)


@dataclass(frozen=True, eq=False)
class PairCorpus(_ImageSizes):
    """Captioned images.

    `mean`, `std`: of each channel of the train split's images, as in ImageCorpus.
    `fingerprint`: hash of the pixels, captions and groups of all splits and of the tokenizer.
    `gallery`: validation and test consist of galleries of this many consecutive pairs, in which each group occurs
    once; None: the whole split is one gallery.
    """

    name: str
    train: PairSplit
    validation: PairSplit
    test: PairSplit | None
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    gallery: int | None

    @property
    def longest(self) -> int:
        """Return the width of all `tokens`: the longest caption of all splits, including the first end token."""
        return int(self.train.tokens.shape[1])


ImageDataSettings = Annotated[DigitsSettings | ImageFolderSettings | ImageHubSettings, Field(discriminator="kind")]
PairDataSettings = Annotated[
    DigitScenesSettings | CaptionFilesSettings | CaptionHubSettings, Field(discriminator="kind")
]

_FORMAT = 1  # part of every fingerprint; increase it if the same input gives a different corpus
_TOGETHER = 10_000  # captions tokenized together


def prepare_images(data: ImageDataSettings, *, cache: Path | None = None, progress: bool = True) -> ImageCorpus:
    """Return the decoded images and labels of a corpus, from the cache if possible.

    The source images are hashed at every call, so a changed image is never mistaken for the old one; pixels on disk are
    hashed too, and damaged ones are decoded again. Memory is bounded if images are read from files.
    `cache`: folder of the pixels (default: `cache_root`). `progress`: show a bar if stderr is a terminal.
    Raises: UserError for anything wrong with the images, the labels or the cache folder.
    """
    labelled = _read_images(data, cache or cache_root(), progress)
    splits = {name: ImageSplit(split.pixels.array, split.labels) for name, split in labelled.splits.items()}
    mean, std = labelled.splits["train"].pixels.moments()
    content = {name: [split.pixels.digest, _digest(split.labels)] for name, split in labelled.splits.items()}
    return ImageCorpus(
        name=labelled.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=labelled.classes,
        mean=mean,
        std=std,
        fingerprint=hash_of([_FORMAT, labelled.classes, content]),
    )


def prepare_pairs(
    data: PairDataSettings, tokenizer: TokenizerSettings, *, cache: Path | None = None, progress: bool = True
) -> PairCorpus:
    """Return the decoded images and tokenized captions of a corpus; pixels come from the cache if possible.

    Hashing, memory, `cache` and `progress` as in `prepare_images`; BPE is trained on the train split's captions.
    Raises: UserError for anything wrong with the images, the captions, the tokenizer or the cache folder.
    """
    root = cache or cache_root()
    captioned = _read_pairs(data, root, progress)
    texts = captioned.splits["train"].captions
    encoder, encoder_fingerprint = build_tokenizer(
        tokenizer,
        iter(texts),
        hash_of(texts),
        root=root,
        bar=Progress("training the tokenizer", sum(len(text.encode()) for text in texts), progress),
    )
    encoded = {name: _encoded(split.captions, encoder) for name, split in captioned.splits.items()}
    longest = 1 + max(len(tokens) for of_split in encoded.values() for tokens in of_split)
    splits = {
        name: _pair_split(split, encoded[name], longest, encoder.end_token_id)
        for name, split in captioned.splits.items()
    }
    mean, std = captioned.splits["train"].pixels.moments()
    content = {
        name: [split.pixels.digest, _digest(split.image_of), _digest(split.groups), split.captions]
        for name, split in captioned.splits.items()
    }
    return PairCorpus(
        name=captioned.name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        tokenizer=encoder,
        mean=mean,
        std=std,
        fingerprint=hash_of([_FORMAT, encoder_fingerprint, captioned.gallery, content]),
        gallery=captioned.gallery,
    )


def _read_images(data: ImageDataSettings, root: Path, progress: bool) -> Labelled:
    match data:
        case DigitsSettings():
            return read_digits(data)
        case ImageFolderSettings():
            return read_folder(data, root=root, progress=progress)
        case ImageHubSettings():
            return read_hub(data, root=root, progress=progress)


def _read_pairs(data: PairDataSettings, root: Path, progress: bool) -> Captioned:
    match data:
        case DigitScenesSettings():
            return make_scenes(data)
        case CaptionFilesSettings():
            return read_caption_files(data, root=root, progress=progress)
        case CaptionHubSettings():
            return read_caption_hub(data, root=root, progress=progress)


def _encoded(captions: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Return the tokens of each caption; each text is tokenized once."""
    different = list(dict.fromkeys(captions))
    tokens: dict[str, np.ndarray] = {}
    for first in range(0, len(different), _TOGETHER):
        texts = different[first : first + _TOGETHER]
        tokens.update(zip(texts, tokenizer.encode_batch(texts), strict=True))
    return [tokens[caption] for caption in captions]


def _pair_split(split: CaptionedPixels, encoded: Sequence[np.ndarray], longest: int, end: int) -> PairSplit:
    tokens = np.full((len(encoded), longest), end, dtype=np.int64)
    for row, caption in zip(tokens, encoded, strict=True):
        row[1 : 1 + len(caption)] = caption
    return PairSplit(
        images=split.pixels.array,
        image_of=split.image_of,
        tokens=tokens,
        lengths=np.array([1 + len(caption) for caption in encoded], dtype=np.int64),
        groups=split.groups,
        captions=split.captions,
    )


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()
