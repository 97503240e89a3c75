"""Handwritten digits that scikit-learn ships: 1,797 images of 8 × 8 pixels (UCI, Alpaydin and Kaynak 1998)."""

from functools import cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from natattn.data.images.pixels import check_not_empty, check_shift, digest, mean_and_std, resized
from natattn.data.images.splits import ImageCorpus, ImageOptions, ImageSplit
from natattn.data.images.store import held_out
from natattn.data.splits import SplitName

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Fraction = Annotated[float, Field(ge=0, lt=1)]


class DigitsSettings(ImageOptions):
    """Images go to the splits by a hash of their pixels, so that no two equal ones are in different splits."""

    kind: Literal["digits"]
    validation_fraction: Fraction = Field(gt=0)
    test_fraction: Fraction


def load_digits(settings: DigitsSettings) -> ImageCorpus:
    """The digits, resized from 8 × 8. Raises UserError where the fractions leave a split empty."""
    check_shift(settings.shift, settings.image_size)
    images, labels = digit_images()
    splits = {
        name: ImageSplit(enlarged(images[chosen], settings.image_size), labels[chosen])
        for name, chosen in digit_splits(settings.validation_fraction, settings.test_fraction).items()
    }
    check_not_empty([(name, len(split)) for name, split in splits.items()])
    mean, std = mean_and_std(splits["train"].images)
    arrays = [array for split in splits.values() for array in (split.images, split.labels)]
    return ImageCorpus(
        name="digits",
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=DIGIT_NAMES,
        mean=mean,
        std=std,
        fingerprint=digest(arrays, *splits, *DIGIT_NAMES),
    )


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [1797, 8, 8, 1] and int64 labels [1797]."""
    from sklearn import datasets

    found = datasets.load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, found.target.astype(np.int64)


def digit_splits(validation_fraction: float, test_fraction: float) -> dict[SplitName, np.ndarray]:
    """{split: indices of its digits}; no test split where its fraction is 0."""
    return held_out([image.tobytes().hex() for image in digit_images()[0]], validation_fraction, test_fraction)


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images [count, side, side, 1], resized to [count, size, size, 1]."""
    from PIL import Image

    if images.shape[1] == size:
        return images
    pictures = (Image.fromarray(image[..., 0]) for image in images)
    return np.stack([resized(picture, size, "L") for picture in pictures])
