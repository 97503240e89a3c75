"""Handwritten digits, 1,797 real images of 8 × 8 pixels (digits.npz; digits.LICENSE.txt), and scenes of two digits.

A scene is an image of two digits with a caption that states their arrangement, so both digits must be recognised. A
meaning is (first digit, second digit, arrangement): the first is left of the second, or above it. There are 200
meanings, and each has two captions, which both fit all images of the meaning. No digit image is used in two splits.
"""

from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from natattn.data.images.pixels import Fill, pixels_in_memory, resized
from natattn.data.images.sources import (
    Captioned,
    CaptionedPixels,
    Labelled,
    LabelledPixels,
    PictureSettings,
    draw_splits,
)
from natattn.data.text.blocks import SCENE, Sampling, sample_indices, sample_words, scale
from natattn.data.text.splits import SplitName, hash_number
from natattn.errors import UserError

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_SIZE = 8
ON_BLACK: Fill = "zero"  # repeating the edge would lengthen strokes that end there


class DigitsSettings(PictureSettings):
    """The digits; held-out images are drawn by a hash of their pixels."""

    fill: ClassVar[Fill] = ON_BLACK

    kind: Literal["digits"]


def read_digits(settings: DigitsSettings) -> Labelled:
    """Return the digits in their splits."""
    images, labels = digit_pictures()
    splits = {
        split: LabelledPixels(pixels_in_memory(resize_grey(images[members], settings.image_size)), labels[members])
        for split, members in split_digits(settings).items()
    }
    return Labelled("digits", DIGIT_NAMES, splits)


@lru_cache(maxsize=1)
def digit_pictures() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, uint8 [1797, 8, 8], and digits, int64 [1797]."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as digits:
        images = np.rint(digits["ink"] * (255 / 16)).astype(np.uint8)  # the data set counts ink from 0 to 16
        return images, digits["labels"].astype(np.int64)


def split_digits(settings: PictureSettings) -> dict[SplitName, np.ndarray]:
    """Return {split: int64 indices of its digits}; no image is in two splits."""
    keys = [hash_number(image.tobytes()) for image in digit_pictures()[0]]
    return draw_splits(keys, settings.fractions(validation=False, test=False), "data.validation_fraction")


def resize_grey(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [count, height, width] to uint8 [count, size, size, 1]."""
    if images.shape[1] != size:
        from PIL import Image

        images = np.stack([np.asarray(resized(Image.fromarray(image), size)) for image in images])
    return images[..., None]


MEANINGS = 200
CANVAS = 2 * DIGIT_SIZE  # pixels of each side before resizing
_DIGITS = len(DIGIT_NAMES)
_PHRASES = (("left of", "right of"), ("above", "below"))  # for each arrangement: first to second, second to first


class DigitScenesSettings(PictureSettings):
    """Scenes of two digits, drawn by `seed`. The fractions apply to the digits that scenes are composed of.

    A gallery contains each of the 200 meanings once.
    """

    fill: ClassVar[Fill] = ON_BLACK

    kind: Literal["digit_scenes"]
    seed: int
    train_pairs: int = Field(ge=1, le=10**9)
    validation_galleries: int = Field(ge=1, le=10**6)
    test_galleries: int = Field(ge=0, le=10**6)

    @field_validator("flip")
    @classmethod
    def _stay_true(cls, flip: bool) -> bool:
        if flip:
            raise ValueError("mirroring a scene makes its caption wrong. Use false")
        return flip


def make_scenes(settings: DigitScenesSettings) -> Captioned:
    """Return the scenes of each split, the same at every call.

    Raises: UserError if a split has no image of a digit.
    """
    digits = split_digits(settings)
    counts: dict[SplitName, int] = {
        "train": settings.train_pairs,
        "validation": settings.validation_galleries * MEANINGS,
        "test": settings.test_galleries * MEANINGS,
    }
    splits = {
        split: _scenes(settings, split, digits.get(split, np.zeros(0, dtype=np.int64)), count)
        for split, count in counts.items()
        if count
    }
    return Captioned("digit-scenes", splits, gallery=MEANINGS)


def _scenes(settings: DigitScenesSettings, split: SplitName, digits: np.ndarray, count: int) -> CaptionedPixels:
    """Return the scenes of a split; `digits`, int64, are indices into `digit_pictures`."""
    # Each split has its own seed, so that no split repeats the draws of another.
    seed = hash_number(f"natattn digit scenes {settings.seed} {split}".encode())
    sampling: Sampling = "random" if split == "train" else "epochs"  # an epoch over all meanings is a gallery
    meanings = sample_indices(seed, sampling, 0, count, MEANINGS)
    words = sample_words(seed, SCENE, 0, count)
    arrangements, rest = np.divmod(meanings, _DIGITS * _DIGITS)
    firsts, seconds = np.divmod(rest, _DIGITS)
    members, starts, counts = _by_digit(settings, split, digits)
    bits = (words[:, 2:3] >> np.arange(6, dtype=np.uint64) & np.uint64(1)).astype(np.int64)
    canvas = np.zeros((count, CANVAS, CANVAS), dtype=np.uint8)
    above = arrangements == 1
    for place, shown in enumerate((firsts, seconds)):
        chosen = members[starts[shown] + scale(words[:, place], counts[shown])]
        rows, columns = np.where(above, place, bits[:, 0]), np.where(above, bits[:, 0], place)
        down, across = bits[:, 1 + 2 * place], bits[:, 2 + 2 * place]
        # Digits fill the height of their cells, so vertically arranged digits must not be shifted towards each other.
        _draw(canvas, digit_pictures()[0][chosen], _moved(rows, np.where(above, 0, down)), _moved(columns, across))
    captions = tuple(map(_caption, firsts.tolist(), seconds.tolist(), arrangements.tolist(), bits[:, 5].tolist()))
    pixels = pixels_in_memory(resize_grey(canvas, settings.image_size))
    return CaptionedPixels(pixels, np.arange(count, dtype=np.int64), meanings, captions)


def _by_digit(
    settings: DigitScenesSettings, split: SplitName, digits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pictures in the order of their digits, where each digit's begin, how many each has)."""
    shown = digit_pictures()[1][digits]
    counts = np.bincount(shown, minlength=_DIGITS)
    if not counts.all():
        keys = ("validation_fraction", "test_fraction") if split == "train" else (f"{split}_fraction",)
        given = ", ".join(f"data.{key}={getattr(settings, key)}" for key in keys)
        raise UserError(
            f"{given}: the {split} scenes have no picture of {_named(int(np.argmin(counts)))} to show; "
            "valid: fractions that leave each split about a hundred of the 1,797 digits"
        )
    return digits[np.argsort(shown, kind="stable")], np.cumsum(counts) - counts, counts


def _moved(cells: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Int64 [scenes]: where digits in row or column 0 or 1 begin, moved by an offset of 0 or 1 pixel.

    They move towards the middle of the scene, so that none is cut off.
    """
    return np.where(cells == 0, offsets, DIGIT_SIZE - offsets)


def _draw(canvas: np.ndarray, pictures: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> None:
    """Draw a digit into each scene at (top, left); where it meets another, the brighter pixel counts."""
    pixels = np.arange(DIGIT_SIZE)
    place = (
        np.arange(len(canvas))[:, None, None],
        (tops[:, None] + pixels)[:, :, None],
        (lefts[:, None] + pixels)[:, None, :],
    )
    canvas[place] = np.maximum(canvas[place], pictures)


def _caption(first: int, second: int, arrangement: int, phrase: int) -> str:
    subject, other = (second, first) if phrase else (first, second)
    return f"{_named(subject)} {_PHRASES[arrangement][phrase]} {_named(other)}"


def _named(digit: int) -> str:
    name = DIGIT_NAMES[digit]
    return f"an {name}" if name == "eight" else f"a {name}"
