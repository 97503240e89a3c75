from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from make_pictures import pixels, png, write_tables

from natattn.data import hub
from natattn.data.images import ImageCorpus, ImageHubSettings, prepare_images
from natattn.errors import UserError

pytestmark = pytest.mark.usefixtures("own_hub_cache")

NAMES = ["ant", "bee", "cow"]


def table(count: int, first: int = 0, label: Any = None, labels: list[Any] | None = None) -> datasets.Dataset:
    """Rows of a picture and a label; by default labels 0, 1, 2, 0, … with names."""
    features = datasets.Features({"img": datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)})
    pictures = [{"bytes": png(number), "path": None} for number in range(first, first + count)]
    rows = {"img": pictures, "label": labels or [number % 3 for number in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def run(folder: Path, **changes: Any) -> ImageCorpus:
    fields = {
        "kind": "image_hub",
        "dataset": str(folder),
        "release": None,
        "image_column": "img",
        "label_column": "label",
        "train": "train",
        "validation": None,
        "test": "test",
        "channels": "rgb",
        "image_size": 6,
        "shift": 0,
        "flip": False,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
    }
    cache = folder.parent / "cache"
    return prepare_images(ImageHubSettings.model_validate(fields | changes), cache=cache, progress=False)


def test_splits_labels_and_names_are_those_of_the_set(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "beasts", {"train": table(10), "test": table(4, first=100)})
    corpus = run(folder)
    assert corpus.test is not None
    assert (corpus.name, corpus.classes) == ("beasts", ("ant", "bee", "cow"))
    assert [len(split) for split in (corpus.train, corpus.validation, corpus.test)] == [8, 2, 4]
    assert isinstance(corpus.train.images, np.memmap)
    assert np.array_equal(corpus.test.images, [pixels(number) for number in range(100, 104)])
    assert corpus.test.labels.tolist() == [0, 1, 2, 0]
    number_of = {pixels(number).tobytes(): number for number in range(10)}
    for split in (corpus.train, corpus.validation):
        for image, label in zip(split.images, split.labels, strict=True):
            assert label == number_of.pop(image.tobytes()) % 3
    assert not number_of
    assert run(folder).fingerprint == corpus.fingerprint
    assert len(run(folder, validation="test", test=None).validation) == 4


@pytest.mark.parametrize(
    ("label", "labels", "classes", "expected"),
    [
        (datasets.Value("string"), ["dog", "cat", "dog", "emu"], ("cat", "dog", "emu"), [1, 0, 1, 2]),
        (datasets.Value("int64"), [10, 2, 10, 7], ("2", "7", "10"), [2, 0, 2, 1]),
        (datasets.Value("bool"), [True, False, False, True], ("False", "True"), [1, 0, 0, 1]),
    ],
)
def test_labels_without_names_are_numbered_in_their_order(
    tmp_path: Path, label: Any, labels: list[Any], classes: tuple[str, ...], expected: list[int]
) -> None:
    tables = {split: table(4, 10 * i, label, labels) for i, split in enumerate(("train", "validation"))}
    corpus = run(write_tables(tmp_path / "set", tables), validation="validation", test=None)
    assert corpus.classes == classes
    assert corpus.train.labels.tolist() == corpus.validation.labels.tolist() == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_pictures_may_be_plain_bytes(tmp_path: Path, wrapped: bool) -> None:
    """As sets have them that were written without `datasets`."""
    tables = {}
    for split, first in (("train", 0), ("test", 50)):
        contents: list[Any] = [png(number) for number in range(first, first + 5)]
        if wrapped:
            contents = [{"bytes": content, "path": "a.png"} for content in contents]
        tables[split] = datasets.Dataset.from_dict({"img": contents, "label": [0, 1, 0, 1, 1]})
    corpus = run(write_tables(tmp_path / "set", tables))
    assert corpus.test is not None
    assert np.array_equal(corpus.test.images, [pixels(number) for number in range(50, 55)])


def with_cell(content: Any) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    image = [{"bytes": png(0), "path": None}, content]
    return datasets.Dataset.from_dict({"img": image, "label": [0, 1]}, features=features)


TEXT, INTEGER = datasets.Value("string"), datasets.Value("int64")


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (dict, {"train": "training"}, r"data\.train=training: .*set has no such split. Use train, test"),
        (dict, {"validation": "test"}, r"data\.test=test: the same split as data\.validation"),
        (dict, {"image_column": "image"}, r"data\.image_column=image: no such column. Use one of img, label"),
        (dict, {"image_column": "label"}, r"data\.image_column=label: holds no images. Columns with images: img"),
        (dict, {"label_column": "y"}, r"data\.label_column=y: no such column. Use one of img, label"),
        (dict, {"label_column": "img"}, r"data\.label_column=img: holds .*; labels are integers or text"),
        (dict, {"release": "other"}, r"data\.dataset=.*set \(other\) cannot be loaded"),
        (
            lambda: {"test": table(2, 9, labels=[0, -1])},
            {},
            r"data\.dataset: test\[1\]: label -1, as in splits without labels. Use 0 … 2, or null",
        ),
        (
            lambda: {"train": table(4, 0, INTEGER, [0, 1, 2, -1]), "test": table(2, 9, INTEGER, [0, 1])},
            {},
            r"train\[3\]: label -1, .*Use 0 or more",
        ),
        (
            lambda: {"train": table(4, 0, TEXT, list("abab")), "test": table(2, 9, TEXT, list("ac"))},
            {},
            r"test\[1\]: label 'c' is not in train",
        ),
        (
            lambda: {"train": table(4, 0, TEXT, ["a", None, "b", "a"]), "test": table(2, 9, TEXT, list("ab"))},
            {},
            r"train\[1\]: no label in column label",
        ),
        (
            lambda: {"train": table(4, labels=[1, 1, 1, 1])},
            {},
            r"data\.label_column=label: all rows of train are 'bee'",
        ),
        (lambda: {"test": with_cell({"bytes": b"no image", "path": None})}, {}, r"test\[1\]: cannot be decoded"),
        (lambda: {"test": with_cell({"bytes": png(1)[:80], "path": None})}, {}, r"test\[1\]: cannot be decoded"),
        (lambda: {"test": with_cell(None)}, {}, r"test\[1\]: no image in column img"),
    ],
)
def test_what_is_wrong_with_a_set_is_said(
    tmp_path: Path, make: Callable[[], dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    folder = write_tables(tmp_path / "set", {"train": table(6), "test": table(2, 50)} | make())
    with pytest.raises(UserError, match=message) as error:
        run(folder, **changes)
    assert "\n" not in str(error.value)


def test_without_a_network_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    hub.hub_reachable.cache_clear()
    with pytest.raises(UserError) as error:
        run(tmp_path, dataset="uoft-cs/cifar10")
    hub.hub_reachable.cache_clear()
    for part in ("data.dataset=uoft-cs/cifar10 cannot be loaded", "cannot be reached", "data=digits", "image_folder"):
        assert part in str(error.value)
