"""The kinds of images and pairs there are, and the choice among them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from natattn.data.images.captioned import (
    CaptionFilesSettings,
    CaptionHubSettings,
    load_caption_files,
    load_caption_hub,
)
from natattn.data.images.captions import caption_tokenizer
from natattn.data.images.digits import DigitsSettings, load_digits
from natattn.data.images.labelled import ImageFolderSettings, ImageHubSettings, load_folders, load_image_hub
from natattn.data.images.scenes import DigitScenesSettings, load_scenes, make_scenes
from natattn.data.images.splits import ImageCorpus, PairCorpus
from natattn.data.tokenizers import TokenizerSettings

ImageDataSettings = Annotated[DigitsSettings | ImageFolderSettings | ImageHubSettings, Field(discriminator="kind")]
PairDataSettings = Annotated[
    DigitScenesSettings | CaptionFilesSettings | CaptionHubSettings, Field(discriminator="kind")
]


def prepare_images(data: ImageDataSettings, *, cache: Path | None = None, progress: bool = True) -> ImageCorpus:
    """Labelled images; those from files are decoded once for each content and size.

    Args:
        cache: the folder for what is decoded, else see `cache_root`.
        progress: a bar on standard error for what takes long, where that is a terminal.

    Raises: UserError for all that is wrong with the images or the cache folder.
    """
    match data:
        case DigitsSettings():
            return load_digits(data)
        case ImageFolderSettings():
            return load_folders(data, cache, progress)
        case ImageHubSettings():
            return load_image_hub(data, cache, progress)


def prepare_pairs(
    data: PairDataSettings, tokenizer: TokenizerSettings, *, cache: Path | None = None, progress: bool = True
) -> PairCorpus:
    """Pairs of images and tokenized captions; as ``prepare_images``."""
    match data:
        case DigitScenesSettings():
            scenes = make_scenes(data)
            return load_scenes(data, caption_tokenizer(tokenizer, scenes["train"].captions, cache), scenes)
        case CaptionFilesSettings():
            return load_caption_files(data, tokenizer, cache, progress)
        case CaptionHubSettings():
            return load_caption_hub(data, tokenizer, cache, progress)
