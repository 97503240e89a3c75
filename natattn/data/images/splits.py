"""Images in splits: with a class each, or in pairs with captions; and the settings that all kinds of them share."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from natattn.data.tokenizers import Tokenizer
from natattn.settings import Settings


class ImageOptions(Settings):
    """What every kind of image data has.

    Attributes:
        image_size: pixels of a side; images are resized to it and square.
        shift: training images are moved by up to as many pixels in each direction, the edge being repeated.
        flip: training images are mirrored with probability ½.
    """

    image_size: int = Field(ge=2, le=4096)
    shift: int = Field(ge=0)
    flip: bool


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Labelled images.

    `images`: uint8 [count, height, width, channels], memory-mapped where read from files; `labels`: int64 [count].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageCorpus:
    """Labelled images.

    `mean` and `std`: of each channel over the train split, of pixels in 0 … 1. `fingerprint`: hash of pixels, labels
    and names of classes.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return int(self.train.images.shape[1])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return int(self.train.images.shape[3])


@dataclass(frozen=True, eq=False)
class PairSplit:
    """Pairs of an image and a caption.

    `images`: uint8 [images, height, width, channels]; `image_of`: int64 [pairs], the image of each caption.
    `tokens`: int64 [pairs, longest]: the end token, at which the text tower reads off what it understood, the caption,
    then end tokens as padding. `lengths`: int64 [pairs], the tokens that are no padding.
    `groups`: int64 [pairs]; in pairs of one group either caption fits either image.
    """

    images: np.ndarray
    image_of: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, eq=False)
class PairCorpus:
    """Pairs in splits.

    `gallery`: validation and test are galleries of as many consecutive pairs, in each of which every group occurs once;
    None where a whole split is one.
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
    def image_size(self) -> int:
        """Pixels of a side."""
        return int(self.train.images.shape[1])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return int(self.train.images.shape[3])

    @property
    def longest(self) -> int:
        """Tokens of the longest caption, with the one that stands first."""
        return int(self.train.tokens.shape[1])
