from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from make_pictures import pixels, png, write_tables

from natattn.data.images import CaptionHubSettings, PairCorpus, prepare_pairs
from natattn.data.text.tokenizers import ByteSettings
from natattn.errors import UserError

pytestmark = pytest.mark.usefixtures("own_hub_cache")


def table(count: int, first: int = 0, **columns: list[Any]) -> datasets.Dataset:
    pictures = [{"bytes": png(number), "path": None} for number in range(first, first + count)]
    rows = datasets.Dataset.from_dict({"image": pictures, **columns})
    return rows.cast_column("image", datasets.Image())


def run(folder: Path, **changes: Any) -> PairCorpus:
    fields = {
        "kind": "caption_hub",
        "dataset": str(folder),
        "release": None,
        "image_column": "image",
        "caption_column": "caption",
        "train": "train",
        "validation": "validation",
        "test": None,
        "channels": "rgb",
        "image_size": 6,
        "shift": 0,
        "flip": False,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
    }
    settings = CaptionHubSettings.model_validate(fields | changes)
    return prepare_pairs(settings, ByteSettings(kind="byte"), cache=folder.parent / "cache", progress=False)


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """A set with two captions to each picture, in columns of their own and in one of lists."""

    def rows(count: int, first: int) -> datasets.Dataset:
        ones, others = ([f"{word} {first + row}" for row in range(count)] for word in ("one", "other"))
        lists = [list(pair) for pair in zip(ones, others, strict=True)]
        return table(count, first, caption_0=ones, caption_1=others, caption=lists)

    return write_tables(tmp_path / "flickr", {"train": rows(4, 0), "validation": rows(2, 50)})


@pytest.mark.parametrize("columns", ["caption", ["caption_0", "caption_1"]])
def test_several_captions_of_each_picture(flickr: Path, columns: Any) -> None:
    corpus = run(flickr, caption_column=columns)
    assert corpus.name == "flickr"
    assert corpus.gallery is None
    assert np.array_equal(corpus.train.images, [pixels(number) for number in range(4)])
    assert corpus.train.captions == tuple(f"{word} {number}" for number in range(4) for word in ("one", "other"))
    assert corpus.train.image_of.tolist() == corpus.train.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert corpus.validation.captions == ("one 50", "other 50", "one 51", "other 51")
    assert run(flickr, caption_column=columns).fingerprint == corpus.fingerprint


def test_held_out_pictures_are_taken_from_train(flickr: Path) -> None:
    corpus = run(flickr, validation=None, validation_fraction=0.4, test_fraction=0.0)
    assert [len(corpus.train), len(corpus.validation)] == [4, 4]
    assert not set(corpus.train.captions) & set(corpus.validation.captions)


@pytest.mark.parametrize(
    ("captions", "changes", "message"),
    [
        (["x", " "], {}, r"data\.dataset: train\[1\]\['caption'\]: the caption is empty"),
        (["x", None], {}, r"train\[1\]\['caption'\]: the caption is NoneType, not text"),
        ([["x"], []], {}, r"train\[1\]\['caption'\]: an empty list of captions"),
        ([1, 2], {}, r"train\[0\]\['caption'\]: the caption is int, not text"),
        (
            ["x", "y"],
            {"caption_column": ["caption", "text"]},
            r"data\.caption_column=text: no such column. Use one of image",
        ),
        (["x", "y"], {"image_column": "caption"}, r"image_column=caption: holds no images. Columns with images: image"),
        (["x", "y"], {"validation": "valid"}, r"data\.validation=valid: .* no such split. Use train, validation"),
    ],
)
def test_what_is_wrong_with_a_set_is_said(
    tmp_path: Path, captions: list[Any], changes: dict[str, Any], message: str
) -> None:
    tables = {"train": table(2, caption=captions), "validation": table(2, 50, caption=captions)}
    with pytest.raises(UserError, match=message) as error:
        run(write_tables(tmp_path / "set", tables), **changes)
    assert "\n" not in str(error.value)
