"""What every source of labelled pictures gives, before it becomes a corpus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natattn.data.images.held_out import draw_splits
from natattn.data.images.options import GivenPictures
from natattn.data.images.pixels import Picture, Pixels, stored_pixels
from natattn.data.text.splits import SplitName


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """`labels`: int64 [count], indices into the classes."""

    pixels: Pixels
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled pictures in splits; train and validation are there always."""

    name: str
    classes: tuple[str, ...]
    splits: dict[SplitName, LabelledPixels]


def members_of(
    settings: GivenPictures, keys: Mapping[SplitName, Sequence[int]], source: str
) -> dict[SplitName, tuple[SplitName, np.ndarray]]:
    """{split: (the split that it is taken from, int64 indices there)}, with `keys` of the pictures that are given.

    Raises UserError naming `source` where train has too few different pictures to be split.
    """
    fractions = settings.fractions(validation=settings.validation is not None, test=settings.test is not None)
    drawn = draw_splits(keys["train"], fractions, source)
    given = {split: np.arange(len(keys[split])) for split in keys if split != "train"}
    return {split: ("train", members) for split, members in drawn.items()} | {
        split: (split, members) for split, members in given.items()
    }


def store_labelled(
    name: str,
    classes: tuple[str, ...],
    given: Mapping[SplitName, tuple[Sequence[Picture], np.ndarray]],
    settings: GivenPictures,
    *,
    source: str,
    root: Path,
    progress: bool,
) -> Labelled:
    """The corpus of the pictures and labels of each split that is given, held-out ones taken from train.

    Raises UserError for what cannot be decoded, naming the picture, and for too few pictures, naming `source`.
    """
    keys = {split: [picture.key for picture in pictures] for split, (pictures, _) in given.items()}
    splits: dict[SplitName, LabelledPixels] = {}
    for split, (origin, members) in members_of(settings, keys, source).items():
        pictures, labels = given[origin]
        pixels = stored_pixels(
            [pictures[index] for index in members.tolist()],
            settings.image_size,
            settings.channels,
            root=root,
            label=f"decoding {split}",
            progress=progress,
        )
        splits[split] = LabelledPixels(pixels, labels[members])
    return Labelled(name, classes, splits)
