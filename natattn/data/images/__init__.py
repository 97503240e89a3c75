"""Images with labels or captions, in splits that are addressed by sample index like tokens."""

from natattn.data.images.corpora import (
    ImageCorpus,
    ImageDataSettings,
    ImageSplit,
    PairCorpus,
    PairDataSettings,
    PairSplit,
    prepare_images,
    prepare_pairs,
)
from natattn.data.images.digits import DigitScenesSettings, DigitsSettings
from natattn.data.images.files import CaptionFilesSettings, ImageFolderSettings
from natattn.data.images.hub import CaptionHubSettings, ImageHubSettings
from natattn.data.images.pixels import augmented

__all__ = [
    "CaptionFilesSettings",
    "CaptionHubSettings",
    "DigitScenesSettings",
    "DigitsSettings",
    "ImageCorpus",
    "ImageDataSettings",
    "ImageFolderSettings",
    "ImageHubSettings",
    "ImageSplit",
    "PairCorpus",
    "PairDataSettings",
    "PairSplit",
    "augmented",
    "prepare_images",
    "prepare_pairs",
]
