"""Pictures with labels or captions → splits that are addressed by sample, as tokens are."""

from natattn.data.images.augment import augmented
from natattn.data.images.caption_files import CaptionFilesSettings
from natattn.data.images.caption_hub import CaptionHubSettings
from natattn.data.images.corpora import ImageCorpus, ImageSplit, PairCorpus, PairSplit
from natattn.data.images.digits import DigitsSettings
from natattn.data.images.folder import ImageFolderSettings
from natattn.data.images.hub import ImageHubSettings
from natattn.data.images.prepare import ImageDataSettings, PairDataSettings, prepare_images, prepare_pairs
from natattn.data.images.scenes import DigitScenesSettings

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
