"""Handwritten digits: 1,797 real images of 8 × 8 pixels that ship with natattn (digits.npz; digits.LICENSE.txt)."""

from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from natattn.data.images.augment import Fill
from natattn.data.images.held_out import draw_splits
from natattn.data.images.labelled import Labelled, LabelledPixels
from natattn.data.images.options import PictureSettings
from natattn.data.images.pixels import pixels_in_memory, resized
from natattn.data.text.splits import SplitName, hash_number

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
