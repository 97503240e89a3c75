"""What pictures with labels, and pictures with captions, are turned into."""

from dataclasses import dataclass

import numpy as np

from natattn.data.text.tokenizers import Tokenizer


class _OfPictures:
    """Sizes of the pictures of a corpus."""

    train: "ImageSplit | PairSplit"

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return int(self.train.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for red, green, blue."""
        return int(self.train.images.shape[3])


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split of labelled pictures.

    `images`: uint8 [count, height, width, channels], memory-mapped where the pictures were read from files.
    `labels`: int64 [count], indices into the corpus's classes.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageCorpus(_OfPictures):
    """Pictures to classify.

    `mean`, `std`: of each channel of the train split, pixels in 0 … 1; std is 1 for a channel that never changes.
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
    """One split of captioned pictures; a pair is one caption with its picture.

    `images`: uint8 [images, height, width, channels], memory-mapped where the pictures were read from files.
    `image_of`: int64 [pairs], the image that each caption belongs to.
    `tokens`: int64 [pairs, longest]: the end token (what a text tower pools at), the caption's tokens, then end tokens
    as padding.
    `lengths`: int64 [pairs], tokens that are no padding, the first one included.
    `groups`: int64 [pairs]: pairs of one group say the same, so that each caption of it fits each of its images.
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
class PairCorpus(_OfPictures):
    """Captioned pictures.

    `mean`, `std`: of each channel of the train split's images, as in ImageCorpus.
    `fingerprint`: hash of the pixels, captions and groups of all splits and of the tokenizer.
    `gallery`: validation and test are galleries of this many consecutive pairs in which each group occurs once; None:
    the whole split is one gallery.
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
        """Tokens of the longest caption over all splits, the first end token included: the width of all `tokens`."""
        return int(self.train.tokens.shape[1])
