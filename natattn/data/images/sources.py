"""Common parts of sources of images: settings, held-out splits, and labelled or captioned images before decoding."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from natattn.config.base import Settings
from natattn.data.images.pixels import Channels, Fill, Picture, Pixels, stored_pixels
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class PictureSettings(Settings):
    """Size and augmentation of the images, and the shares of train that held-out splits take.

    `image_size`: pixels of each side, to which images are resized (bilinear).
    `shift`: training images are shifted by up to this many pixels in each direction.
    `flip`: training images are mirrored, left to right, with probability ½.
    """

    # What `augmented` fills the uncovered sides with.
    fill: ClassVar[Fill] = "edge"

    image_size: int = Field(ge=1, le=4096)
    shift: int = Field(ge=0)
    flip: bool
    validation_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(ge=0, lt=0.5)

    @field_validator("shift")
    @classmethod
    def _within_the_picture(cls, shift: int, info: ValidationInfo) -> int:
        size = info.data.get("image_size", shift + 1)  # missing if it is invalid itself
        if shift >= size:
            raise ValueError(f"shifts images of {size} pixels out of view. Use 0 … {size - 1}")
        return shift

    def fractions(self, *, validation: bool, test: bool) -> dict[SplitName, float]:
        """Return the shares of train that held-out splits take; none if validation is given, as for text."""
        if validation:
            return {}
        shares: dict[SplitName, float] = {"validation": self.validation_fraction}
        if not test and self.test_fraction:
            shares["test"] = self.test_fraction
        return shares


class GivenPictures(PictureSettings):
    """Images that are read from files or tables: the source of each split, and the colour channels."""

    train: str
    validation: str | None
    test: str | None
    channels: Channels

    @property
    def named(self) -> dict[SplitName, str]:
        """Return {split: source} for the given splits."""
        return {split: value for split in SPLITS if (value := getattr(self, split)) is not None}

    @property
    def paths(self) -> dict[SplitName, Path]:
        """Return {split: file or folder}, with ~ expanded. Raises: UserError for an unknown user."""
        paths: dict[SplitName, Path] = {}
        for split, value in self.named.items():
            try:
                paths[split] = Path(value).expanduser()
            except RuntimeError as error:
                raise UserError(f"data.{split}={value}: no such user") from error
        return paths


def draw_splits(
    keys: Sequence[int] | np.ndarray, fractions: Mapping[SplitName, float], source: str
) -> dict[SplitName, np.ndarray]:
    """Return {split: int64 indices, ascending} of the images with content hashes `keys`, including train.

    Each held-out split takes its fraction of the distinct hashes, the smallest first, so the choice does not depend on
    the order, and equal images stay together. Raises: UserError naming `source` if nothing is left to train on.
    """
    hashes = np.asarray(keys, dtype=np.uint64)
    ordered, ranks = np.unique(hashes, return_inverse=True)
    splits: dict[SplitName, np.ndarray] = {}
    low = 0
    for split, share in fractions.items():
        high = low + math.ceil(len(ordered) * share)
        splits[split] = np.flatnonzero((ranks >= low) & (ranks < high))
        low = high
    if low >= len(ordered):
        raise UserError(
            f"{source}: {len(ordered)} distinct images are too few to be split. Give data.validation or more images"
        )
    return splits | {"train": np.flatnonzero(ranks >= low)}


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """Images of one split with `labels`, int64 [count], indices into the classes."""

    pixels: Pixels
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled images in splits; train and validation are always present."""

    name: str
    classes: tuple[str, ...]
    splits: dict[SplitName, LabelledPixels]


def members_of(
    settings: GivenPictures, keys: Mapping[SplitName, Sequence[int]], source: str
) -> dict[SplitName, tuple[SplitName, np.ndarray]]:
    """Return {split: (the given split that it is taken from, int64 indices there)} from the content hashes `keys`.

    Raises: UserError naming `source` if train has too few distinct images to be split.
    """
    fractions = settings.fractions(validation=settings.validation is not None, test=settings.test is not None)
    drawn = draw_splits(keys["train"], fractions, source)
    given = {split: np.arange(len(keys[split])) for split in keys if split != "train"}
    return {split: ("train", members) for split, members in drawn.items()} | {
        split: (split, members) for split, members in given.items()
    }


def store_labelled(
    name: str,
    classes: tuple[str, ...],
    given: Mapping[SplitName, tuple[Sequence[Picture], np.ndarray]],
    settings: GivenPictures,
    *,
    source: str,
    root: Path,
    progress: bool,
) -> Labelled:
    """Decode the images of each given split, and take held-out splits from train.

    Raises: UserError naming an image that cannot be decoded, or naming `source` if there are too few images.
    """
    keys = {split: [picture.key for picture in pictures] for split, (pictures, _) in given.items()}
    splits: dict[SplitName, LabelledPixels] = {}
    for split, (origin, members) in members_of(settings, keys, source).items():
        pictures, labels = given[origin]
        pixels = stored_pixels(
            [pictures[index] for index in members.tolist()],
            settings.image_size,
            settings.channels,
            root=root,
            label=f"decoding {split}",
            progress=progress,
        )
        splits[split] = LabelledPixels(pixels, labels[members])
    return Labelled(name, classes, splits)


@dataclass(frozen=True, eq=False)
class CaptionedPixels:
    """Images of one split with `image_of`, `groups` (int64 [pairs]) and `captions` [pairs], as in PairSplit."""

    pixels: Pixels
    image_of: np.ndarray
    groups: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Captioned:
    """Captioned images in splits; train and validation are always present. `gallery`: as in PairCorpus."""

    name: str
    splits: dict[SplitName, CaptionedPixels]
    gallery: int | None


def captions_of(value: Any, place: str) -> tuple[str, ...]:
    """Return the captions of one image, given as a text or a list of texts, without surrounding blanks.

    Raises: UserError naming the place if a caption is not text or is empty.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise UserError(f"{place}: an empty list of captions")
    for caption in values:
        if not isinstance(caption, str):
            raise UserError(f"{place}: the caption is {type(caption).__name__}, not text or a list of texts")
        if not caption.strip():
            raise UserError(f"{place}: the caption is empty")
        if any("\ud800" <= character <= "\udfff" for character in caption):
            # JSON can contain half a surrogate pair, which is not a character and has no UTF-8 encoding.
            raise UserError(f"{place}: the caption contains half a surrogate pair, which is not a character")
    return tuple(caption.strip() for caption in values)


def store_captioned(
    name: str,
    given: Mapping[SplitName, tuple[Sequence[Picture], Sequence[tuple[str, ...]]]],
    settings: GivenPictures,
    *,
    source: str,
    root: Path,
    progress: bool,
) -> Captioned:
    """Decode the (images, captions of each) of each given split, and take held-out splits from train.

    Equal images are merged, with all their captions. Raises: UserError naming an image that cannot be decoded, or
    naming `source` if there are too few images.
    """
    keys = {split: [picture.key for picture in pictures] for split, (pictures, _) in given.items()}
    splits: dict[SplitName, CaptionedPixels] = {}
    for split, (origin, members) in members_of(settings, keys, source).items():
        pictures, captions = given[origin]
        number: dict[bytes, int] = {}
        different: list[Picture] = []
        image_of: list[int] = []
        texts: list[str] = []
        for index in members.tolist():
            image = number.setdefault(pictures[index].digest, len(different))
            if image == len(different):
                different.append(pictures[index])
            image_of += [image] * len(captions[index])
            texts += captions[index]
        if len(different) < 2:
            raise UserError(f"{source}: the {split} split has only one image; at least two are needed")
        pixels = stored_pixels(
            different,
            settings.image_size,
            settings.channels,
            root=root,
            label=f"decoding {split}",
            progress=progress,
        )
        images = np.array(image_of, dtype=np.int64)
        splits[split] = CaptionedPixels(pixels, images, images, tuple(texts))
    return Captioned(name, splits, gallery=None)
