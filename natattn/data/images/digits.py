"""Handwritten digits that come with scikit-learn: 1,797 real pictures of 8 × 8 pixels, no network."""

from functools import lru_cache
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
ON_BLACK: Fill = "zero"  # to repeat the edge would lengthen the strokes that end there


class DigitsSettings(PictureSettings):
    """The digits; held-out ones are drawn by a hash of their pixels."""

    fill: ClassVar[Fill] = ON_BLACK

    kind: Literal["digits"]


def read_digits(settings: DigitsSettings) -> Labelled:
    """The digits in their splits."""
    images, labels = digit_pictures()
    splits = {
        split: LabelledPixels(pixels_in_memory(resize_grey(images[members], settings.image_size)), labels[members])
        for split, members in split_digits(settings).items()
    }
    return Labelled("digits", DIGIT_NAMES, splits)


@lru_cache(maxsize=1)
def digit_pictures() -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [1797, 8, 8], int64 [1797]): pixels and digits."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the set counts ink in 0 … 16
    return images, digits.target.astype(np.int64)


def split_digits(settings: PictureSettings) -> dict[SplitName, np.ndarray]:
    """{split: int64 indices of its digits}; no picture is in two splits."""
    keys = [hash_number(image.tobytes()) for image in digit_pictures()[0]]
    return draw_splits(keys, settings.fractions(validation=False, test=False), "data.validation_fraction")


def resize_grey(images: np.ndarray, size: int) -> np.ndarray:
    """Uint8 [count, height, width] → uint8 [count, size, size, 1]."""
    if images.shape[1] != size:
        from PIL import Image

        images = np.stack([np.asarray(resized(Image.fromarray(image), size)) for image in images])
    return images[..., None]
