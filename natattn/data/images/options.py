"""What the settings of all pictures share."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from natattn.config.base import Settings
from natattn.data.images.augment import Fill
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

Channels = Literal["grey", "rgb"]

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
CHANNEL_COUNTS: dict[Channels, int] = {"grey": 1, "rgb": 3}


class PictureSettings(Settings):
    """Size and augmentation of the pictures, and the shares of train that held-out splits take.

    `image_size`: pixels of each side, to which pictures are resized (bilinear).
    `shift`: training pictures are moved by up to this many pixels in each direction.
    `flip`: training pictures are mirrored, left to right, with probability ½.
    """

    # What `augmented` puts where a picture was moved away.
    fill: ClassVar[Fill] = "edge"

    image_size: int = Field(ge=1, le=4096)
    shift: int = Field(ge=0)
    flip: bool
    validation_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(ge=0, lt=0.5)

    @field_validator("shift")
    @classmethod
    def _within_the_picture(cls, shift: int, info: ValidationInfo) -> int:
        size = info.data.get("image_size", shift + 1)  # absent where it is wrong itself
        if shift >= size:
            raise ValueError(f"moves pictures of {size} pixels out of sight; valid: 0 … {size - 1}")
        return shift

    def fractions(self, *, validation: bool, test: bool) -> dict[SplitName, float]:
        """The shares of train that the held-out splits take; of those that are given by themselves, none.

        With validation given nothing is taken from train, as for text.
        """
        if validation:
            return {}
        shares: dict[SplitName, float] = {"validation": self.validation_fraction}
        if not test and self.test_fraction:
            shares["test"] = self.test_fraction
        return shares


class GivenPictures(PictureSettings):
    """Pictures that are read from files or tables: what each split is named by, and whether they have colours."""

    train: str
    validation: str | None
    test: str | None
    channels: Channels

    @property
    def named(self) -> dict[SplitName, str]:
        """{split: what names it} of the splits that are given."""
        return {split: value for split in SPLITS if (value := getattr(self, split)) is not None}

    @property
    def paths(self) -> dict[SplitName, Path]:
        """The same as files or folders, with ~ as a home folder. Raises UserError for the home of nobody here."""
        paths: dict[SplitName, Path] = {}
        for split, value in self.named.items():
            try:
                paths[split] = Path(value).expanduser()
            except RuntimeError as error:
                raise UserError(f"data.{split}={value}: no such user's folder") from error
        return paths
