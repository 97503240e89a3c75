"""Images → splits in memory or memory-mapped → batches that are addressed by (seed, step), as those of text are."""

from natattn.data.images.augment import augmented
from natattn.data.images.prepare import ImageDataSettings, PairDataSettings, prepare_images, prepare_pairs
from natattn.data.images.splits import ImageCorpus, ImageSplit, PairCorpus, PairSplit

__all__ = [
    "ImageCorpus",
    "ImageDataSettings",
    "ImageSplit",
    "PairCorpus",
    "PairDataSettings",
    "PairSplit",
    "augmented",
    "prepare_images",
    "prepare_pairs",
]
