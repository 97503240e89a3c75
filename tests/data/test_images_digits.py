import hashlib

import numpy as np
import pytest

from natattn.data.images import DigitsSettings, ImageSplit, prepare_images
from natattn.data.images.digits import digit_pictures
from natattn.data.images.sources import draw_splits
from natattn.errors import UserError

FIELDS = {
    "kind": "digits",
    "image_size": 8,
    "shift": 1,
    "flip": False,
    "validation_fraction": 0.15,
    "test_fraction": 0.2,
}


def settings(**changes: object) -> DigitsSettings:
    return DigitsSettings.model_validate(FIELDS | changes)


def contents(split: ImageSplit) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_the_digits_are_those_of_scikit_learn() -> None:
    images, labels = digit_pictures()
    # Of sklearn.datasets.load_digits(): round(images · 255 / 16) as uint8, then target as int64.
    expected = "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == expected
    corpus = prepare_images(settings())
    assert corpus.test is not None
    splits = (corpus.train, corpus.validation, corpus.test)
    assert [len(split) for split in splits] == [1167, 270, 360]
    assert corpus.classes[:3] == ("zero", "one", "two")
    assert (corpus.image_size, corpus.channels) == (8, 1)
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for split in splits:
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split), 8, 8, 1)
        assert split.labels.dtype == np.int64
        assert all(label_of[image.tobytes()] == label for image, label in zip(split.images, split.labels, strict=True))


def test_no_picture_is_in_two_splits_and_the_choice_is_always_the_same() -> None:
    corpus, again = prepare_images(settings()), prepare_images(settings())
    assert corpus.test is not None
    parts = [contents(split) for split in (corpus.train, corpus.validation, corpus.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797
    assert np.array_equal(corpus.train.images, again.train.images)
    assert corpus.fingerprint == again.fingerprint
    # A larger validation split holds the smaller one, and a size of pixels changes no split.
    assert contents(corpus.validation) < contents(prepare_images(settings(validation_fraction=0.2)).validation)
    assert np.array_equal(prepare_images(settings(image_size=12)).train.labels, corpus.train.labels)


def test_the_fingerprint_follows_what_is_fed_and_not_the_augmentation() -> None:
    changes = [{}, {"image_size": 16}, {"validation_fraction": 0.2}, {"test_fraction": 0.0}]
    fingerprints = [prepare_images(settings(**change)).fingerprint for change in changes]
    assert len(set(fingerprints)) == 4
    assert prepare_images(settings(shift=0, flip=True)).fingerprint == fingerprints[0]
    assert prepare_images(settings(test_fraction=0.0)).test is None


def test_mean_and_deviation_are_those_of_the_train_split() -> None:
    corpus = prepare_images(settings(image_size=16))
    values = corpus.train.images / 255
    assert corpus.train.images.shape[1:] == (16, 16, 1)
    assert corpus.mean == pytest.approx(tuple(values.mean(axis=(0, 1, 2))), rel=1e-12)
    assert corpus.std == pytest.approx(tuple(values.std(axis=(0, 1, 2))), rel=1e-12)


def test_digits_are_filled_up_with_black() -> None:
    assert settings().fill == "zero"


def test_equal_contents_stay_in_one_split() -> None:
    keys = [number % 40 for number in range(200)]
    splits = draw_splits(keys, {"validation": 0.1, "test": 0.1}, "data.train=x")
    assert {split: len({keys[index] for index in members}) for split, members in splits.items()} == {
        "validation": 4,
        "test": 4,
        "train": 32,
    }
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(200))
    with pytest.raises(UserError, match=r"data\.train=x: 2 distinct images are too few to be split"):
        draw_splits([1, 2, 2], {"validation": 0.1, "test": 0.1}, "data.train=x")
