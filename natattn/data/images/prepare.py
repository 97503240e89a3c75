"""From the settings of pictures to a corpus: the kinds there are, and what all of them come to."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from natattn.data.cache import cache_root
from natattn.data.images.caption_files import CaptionFilesSettings, read_caption_files
from natattn.data.images.caption_hub import CaptionHubSettings, read_caption_hub
from natattn.data.images.captioned import Captioned, CaptionedPixels
from natattn.data.images.corpora import ImageCorpus, ImageSplit, PairCorpus, PairSplit
from natattn.data.images.digits import DigitsSettings, read_digits
from natattn.data.images.folder import ImageFolderSettings, read_folder
from natattn.data.images.hub import ImageHubSettings, read_hub
from natattn.data.images.labelled import Labelled
from natattn.data.images.scenes import DigitScenesSettings, make_scenes
from natattn.data.progress import Progress
from natattn.data.text.tokenized import build_tokenizer
from natattn.data.text.tokenizers import Tokenizer, TokenizerSettings
from natattn.storage.documents import hash_of

ImageDataSettings = Annotated[DigitsSettings | ImageFolderSettings | ImageHubSettings, Field(discriminator="kind")]
PairDataSettings = Annotated[
    DigitScenesSettings | CaptionFilesSettings | CaptionHubSettings, Field(discriminator="kind")
]

_FORMAT = 1  # part of every fingerprint: raise it when the same input gives another corpus
_TOGETHER = 10_000  # captions tokenized together


def prepare_images(data: ImageDataSettings, *, cache: Path | None = None, progress: bool = True) -> ImageCorpus:
    """The pictures and labels of a corpus, decoded; from the cache if they are there.

    The pictures themselves are hashed at every call, so that a changed one is never taken for the old one; so are the
    pixels on disk, and damaged ones are made again. Memory is bounded where pictures are read from files.
    `cache`: the folder to keep pixels in, else see `cache_root`. `progress`: a bar on stderr, if that is a terminal.
    Raises UserError for all that is wrong with the pictures, the labels or the cache folder.
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
    """The pictures and captions of a corpus, decoded and tokenized; pixels come from the cache if they are there.

    Hashing, memory, `cache` and `progress` as in `prepare_images`; a BPE is trained on the train split's captions.
    Raises UserError for all that is wrong with the pictures, the captions, the tokenizer or the cache folder.
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
    """The tokens of each caption; each text is tokenized once."""
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
