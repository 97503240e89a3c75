"""Two digits in one picture, with a caption that says which stands where: to read it, both must be told apart.

A meaning is (first digit, second digit, arrangement): the first is left of the second, or above it. There are 200, and
each can be said in two ways, of which either fits all pictures of the meaning. No digit is in the scenes of two splits.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from natattn.data.images.augment import Fill
from natattn.data.images.captioned import Captioned, CaptionedPixels
from natattn.data.images.digits import DIGIT_NAMES, DIGIT_SIZE, ON_BLACK, digit_pictures, resize_grey, split_digits
from natattn.data.images.options import PictureSettings
from natattn.data.images.pixels import pixels_in_memory
from natattn.data.text.blocks import SCENE, Sampling, sample_indices, sample_words, scale
from natattn.data.text.splits import SplitName, hash_number
from natattn.errors import UserError

MEANINGS = 200
CANVAS = 2 * DIGIT_SIZE  # pixels of each side, before the scene is resized
_DIGITS = len(DIGIT_NAMES)
_PHRASES = (("left of", "right of"), ("above", "below"))  # of each arrangement: first to second, second to first


class DigitScenesSettings(PictureSettings):
    """Scenes of two digits; `seed` draws them. The fractions are of the digits that scenes are made of.

    A gallery has each of the 200 meanings once.
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
            raise ValueError("a mirrored scene belies its caption, left being right; valid: false")
        return flip


def make_scenes(settings: DigitScenesSettings) -> Captioned:
    """The scenes of each split; the same at every call.

    Raises UserError if a split has no picture of a digit.
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
    """`digits`: int64 [digits of the split], indices into `digit_pictures`."""
    # Each split has a seed of its own, so that none repeats the draws of another.
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
        # Digits fill the height of their cells: one above the other they would run into each other.
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
