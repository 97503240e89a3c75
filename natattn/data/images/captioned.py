"""What every source of captioned pictures gives, before it becomes a corpus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natattn.data.images.labelled import members_of
from natattn.data.images.options import GivenPictures
from natattn.data.images.pixels import Picture, Pixels, stored_pixels
from natattn.data.text.splits import SplitName
from natattn.errors import UserError


@dataclass(frozen=True, eq=False)
class CaptionedPixels:
    """`image_of`, `groups`: int64 [pairs] and `captions` [pairs], as in PairSplit."""

    pixels: Pixels
    image_of: np.ndarray
    groups: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Captioned:
    """Captioned pictures in splits; train and validation are there always. `gallery`: as in PairCorpus."""

    name: str
    splits: dict[SplitName, CaptionedPixels]
    gallery: int | None


def captions_of(value: Any, place: str) -> tuple[str, ...]:
    """The captions that one picture is given, a text or a list of texts; blanks around them do not count.

    Raises UserError naming the place for what is no text, and for an empty one.
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
            # JSON can spell half a surrogate pair, which is no character and has no UTF-8.
            raise UserError(f"{place}: the caption holds half a surrogate pair, which is no character")
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
    """The corpus of (pictures, captions of each) of each split that is given, held-out ones taken from train.

    Equal pictures are one, with all their captions. Raises UserError for what cannot be decoded, naming the picture,
    and for too few pictures, naming `source`.
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
            raise UserError(f"{source}: the {split} split has one image only; to tell images apart it needs two")
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
