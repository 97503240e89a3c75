"""Two digits in a picture, and a caption that needs their places: "a three left of a seven" is not "a seven left of …".

A picture is a square of four cells. A meaning is (first digit, second digit, side by side or one above the other), 200
in all; the row or column of the two is drawn, and each digit is one that somebody wrote, moved by up to a pixel. Each
meaning has two captions, which say it from either digit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from natattn.data.blocks import SCENES, scaled_words, uniform_words
from natattn.data.images.captions import captioned
from natattn.data.images.digits import DIGIT_NAMES, Fraction, digit_images, digit_splits, enlarged
from natattn.data.images.pixels import check_not_empty, check_shift, digest, mean_and_std
from natattn.data.images.splits import ImageOptions, PairCorpus, PairSplit
from natattn.data.splits import SplitName
from natattn.data.tokenizers import Tokenizer
from natattn.errors import UserError

CELL = 8  # pixels of a digit's side
MEANINGS = 200
# {(are they one above the other, is the second digit named first): what stands between the two}
RELATIONS = {
    (False, False): "left of",
    (False, True): "right of",
    (True, False): "above",
    (True, True): "below",
}
_WORDS_PER_SCENE = 2  # times four words of randomness


class DigitScenesSettings(ImageOptions):
    """`train_pairs` scenes of random meanings; validation and test in galleries of all 200 meanings once.

    The digits of the splits are written by different hands, as those of `DigitsSettings` are.
    """

    kind: Literal["digit_scenes"]
    seed: int = Field(ge=0, lt=2**63)
    train_pairs: int = Field(ge=1, le=1_000_000)
    validation_galleries: int = Field(ge=1, le=1000)
    test_galleries: int = Field(ge=0, le=1000)
    validation_fraction: Fraction = Field(gt=0)
    test_fraction: Fraction = Field(gt=0)


@dataclass(frozen=True)
class Scenes:
    """Pictures uint8 [count, 16, 16, 1], meanings int64 [count] and captions."""

    images: np.ndarray
    meanings: np.ndarray
    captions: list[str]


def load_scenes(settings: DigitScenesSettings, tokenizer: Tokenizer, scenes: dict[SplitName, Scenes]) -> PairCorpus:
    """The scenes of ``make_scenes`` as pairs."""
    captions = {name: split.captions for name, split in scenes.items()}
    tokens = captioned(captions, tokenizer)
    splits = {
        name: PairSplit(
            images=enlarged(split.images, settings.image_size),
            image_of=np.arange(len(split.meanings)),
            tokens=tokens[name][0],
            lengths=tokens[name][1],
            groups=split.meanings,
            captions=tuple(split.captions),
        )
        for name, split in scenes.items()
    }
    mean, std = mean_and_std(splits["train"].images)
    arrays = [array for split in splits.values() for array in (split.images, split.tokens, split.groups)]
    return PairCorpus(
        name="digit_scenes",
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        tokenizer=tokenizer,
        mean=mean,
        std=std,
        fingerprint=digest(arrays, *splits),
        gallery=MEANINGS,
    )


def make_scenes(settings: DigitScenesSettings) -> dict[SplitName, Scenes]:
    """The scenes of each split. Raises UserError where a split has no picture of some digit."""
    check_shift(settings.shift, settings.image_size)
    galleries = {"validation": settings.validation_galleries, "test": settings.test_galleries}
    scenes: dict[SplitName, Scenes] = {}
    for number, (name, chosen) in enumerate(digit_splits(settings.validation_fraction, settings.test_fraction).items()):
        count = settings.train_pairs if name == "train" else MEANINGS * galleries[name]
        if not count:
            continue
        check_not_empty([(name, len(chosen))])
        words = uniform_words(settings.seed, SCENES + number, 0, count * _WORDS_PER_SCENE).reshape(count, -1)
        meanings = scaled_words(words[:, 0], MEANINGS)
        if name != "train":  # in every gallery each meaning once, in a drawn order
            order = np.argsort(words[:, 0].reshape(-1, MEANINGS), axis=1, kind="stable")
            meanings = order.reshape(-1)
        scenes[name] = _drawn(name, meanings, words, chosen)
    return scenes


def _drawn(name: str, meanings: np.ndarray, words: np.ndarray, chosen: np.ndarray) -> Scenes:
    """Scenes of the given meanings: uint64 words [count, 8] decide the rest."""
    first, second, above = meanings // 20, meanings // 2 % 10, (meanings % 2).astype(bool)
    other = scaled_words(words[:, 1], 2)  # the row of two that are side by side, the column of two above each other
    images = np.zeros((len(meanings), 2 * CELL, 2 * CELL, 1), dtype=np.uint8)
    for place, digits in enumerate((first, second)):
        pictures = digit_images()[0][_written(name, digits, words[:, 2 + place], chosen)]
        rows = np.where(above, place, other) * CELL
        columns = np.where(above, other, place) * CELL
        down, right = (scaled_words(words[:, 4 + 2 * place + axis], 3) - 1 for axis in (0, 1))
        _paste(images, pictures, rows + down, columns + right)
    swapped = (words[:, 1] & np.uint64(1)).astype(bool)
    captions = [
        caption(int(a), int(b), above=bool(over), second_first=bool(swap))
        for a, b, over, swap in zip(first, second, above, swapped, strict=True)
    ]
    return Scenes(images, meanings, captions)


def caption(first: int, second: int, *, above: bool, second_first: bool) -> str:
    """What is said of a scene: "a three left of a seven", or "a seven right of a three"."""
    said = (second, first) if second_first else (first, second)
    names = [f"{'an' if digit == 8 else 'a'} {DIGIT_NAMES[digit]}" for digit in said]
    return f"{names[0]} {RELATIONS[above, second_first]} {names[1]}"


def _written(split: str, digits: np.ndarray, words: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Index of a picture of each digit, drawn from those of the split."""
    labels = digit_images()[1]
    indices = np.empty(len(digits), dtype=np.int64)
    for digit in range(10):
        pictures = chosen[labels[chosen] == digit]
        if not len(pictures):
            raise UserError(
                f"data: the {split} split has no picture of a {DIGIT_NAMES[digit]}; valid: another "
                "data.validation_fraction or data.test_fraction"
            )
        wanted = digits == digit
        indices[wanted] = pictures[scaled_words(words[wanted], len(pictures))]
    return indices


def _paste(images: np.ndarray, pictures: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Put a picture [CELL, CELL, 1] into each image with its upper left at (row, column); what is outside is lost."""
    side = images.shape[1]
    places = np.arange(CELL)
    y, x = (start[:, None] + places for start in (rows, columns))
    inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :]
    image, row, column = np.nonzero(inside)
    target = (image, y[image, row], x[image, column])
    # Neighbours may overlap by a pixel of their empty edges: the brighter one shows.
    images[target] = np.maximum(images[target], pictures[image, row, column])
