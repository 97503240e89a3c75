"""Labelled and captioned images in tables of `datasets`, from the hub or a folder."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from natattn.data.hub import load_dataset
from natattn.data.images.pixels import Picture
from natattn.data.images.sources import Captioned, GivenPictures, Labelled, captions_of, store_captioned, store_labelled
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

_ROWS = 256


class TableSettings(GivenPictures):
    """`dataset` is a hub name or a folder, `release` its configuration or null; train, validation and test name splits.

    If validation is null, held-out images are taken from train, drawn by a hash of their content.
    """

    dataset: str = Field(min_length=1)
    release: str | None
    image_column: str


def open_tables(settings: TableSettings, *, otherwise: str) -> dict[SplitName, Any]:
    """Return {split: `datasets.Dataset`} for the named splits.

    Raises: UserError if the data set cannot be loaded, or if a split is missing, empty or used twice.
    """
    dataset = settings.dataset
    tables = load_dataset(dataset, settings.release, otherwise=otherwise)
    found: dict[SplitName, Any] = {}
    used: dict[str, SplitName] = {}
    for split, name in settings.named.items():
        if name not in tables:
            raise UserError(f"data.{split}={name}: {dataset} has no such split. Use {', '.join(map(str, tables))}")
        if not len(tables[name]):
            raise UserError(f"data.{split}={name}: the split of {dataset} has no rows")
        if (other := used.setdefault(name, split)) != split:
            raise UserError(
                f"data.{split}={name}: the same split as data.{other}; held-out images must be different images"
            )
        found[split] = tables[name]
    return found


def check_column(table: Any, key: str, column: str) -> None:
    """Raise UserError if the table lacks the column that the setting `key` names."""
    if column not in table.column_names:
        raise UserError(f"{key}={column}: no such column. Use one of {', '.join(table.column_names)}")


def place_of(table: Any, row: int) -> str:
    """Name a row for messages, as Python would index it."""
    return f"data.dataset: {table.split}[{row}]"


def table_pictures(table: Any, column: str) -> list[Picture]:
    """Return the images of a column, hashed. Raises: UserError if the column is missing or holds no images."""
    encoded = _encoded(table, column)
    pictures = []
    for row, content in enumerate(_contents(encoded, column)):
        if content is None:
            raise UserError(f"{place_of(table, row)}: no image in column {column}")
        digest = hashlib.sha256(content).digest()
        pictures.append(Picture(place_of(table, row), digest, len(content), partial(_read, encoded, column, row)))
    return pictures


def _encoded(table: Any, column: str) -> Any:
    """Return the table with only that column, each image as {"bytes", "path"} and not decoded."""
    import datasets

    check_column(table, "data.image_column", column)
    feature = table.features[column]
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    is_pair = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    if not (isinstance(feature, datasets.Image) or is_binary or is_pair):
        images = [name for name, other in table.features.items() if isinstance(other, datasets.Image)]
        raise UserError(
            f"data.image_column={column}: holds no images. Columns with images: {', '.join(images) or 'none'}"
        )
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _contents(encoded: Any, column: str) -> Iterator[bytes | None]:
    for batch in encoded.iter(batch_size=_ROWS):
        yield from map(_content, batch[column])


def _read(encoded: Any, column: str, row: int) -> bytes:
    return _content(encoded[row][column]) or b""


def _content(entry: Mapping[str, Any] | None) -> bytes | None:
    if entry is None:
        return None
    if entry["bytes"] is not None:
        return bytes(entry["bytes"])
    if entry["path"] is None:
        return None
    try:
        return Path(entry["path"]).read_bytes()
    except OSError as error:
        raise UserError(f"{entry['path']}: cannot be read ({error.strerror})") from error


Label = str | int


class ImageHubSettings(TableSettings):
    """Labelled images of a table; `label_column` is a column of numbers or texts."""

    kind: Literal["image_hub"]
    label_column: str


def read_hub(settings: ImageHubSettings, *, root: Path, progress: bool) -> Labelled:
    """Return the images in their splits.

    Raises: UserError for a missing data set, split or column, a label that train lacks, a row without a label, and an
        image that cannot be decoded.
    """
    tables = open_tables(settings, otherwise="data=digits or data=image_folder data.train=FOLDER")
    values = {split: _labels(table, settings.label_column) for split, table in tables.items()}
    names = getattr(tables["train"].features[settings.label_column], "names", None)
    classes: list[Label] = sorted(set(values["train"])) if names is None else names
    if len(set(values["train"])) < 2:
        raise UserError(
            f"data.label_column={settings.label_column}: all rows of {settings.train} are {values['train'][0]!r}; "
            "at least two classes are needed"
        )
    number = {label: index for index, label in enumerate(classes)}
    for split, labels in values.items():
        if unknown := [row for row, label in enumerate(labels) if label not in number]:
            label = labels[unknown[0]]
            raise UserError(f"{place_of(tables[split], unknown[0])}: label {label!r} is not in {settings.train}")
    given: dict[SplitName, Any] = {
        split: (
            table_pictures(table, settings.image_column),
            np.array([number[label] for label in values[split]], dtype=np.int64),
        )
        for split, table in tables.items()
    }
    return store_labelled(
        Path(settings.dataset).name,
        tuple(map(str, classes)),
        given,
        settings,
        source=f"data.dataset={settings.dataset}",
        root=root,
        progress=progress,
    )


def _labels(table: Any, column: str) -> list[Label]:
    """Return the label of each row: its name if the data set has names, else the number or text itself."""
    check_column(table, "data.label_column", column)
    feature = table.features[column]
    dtype = getattr(feature, "dtype", "")
    if not dtype.startswith(("int", "uint", "string", "large_string", "bool")):
        raise UserError(f"data.label_column={column}: holds {dtype or 'lists'}; labels are integers or text")
    names: list[str] | None = getattr(feature, "names", None)
    labels: list[Any] = list(table[column])
    for row, label in enumerate(labels):
        if label is None:
            raise UserError(f"{place_of(table, row)}: no label in column {column}")
        if isinstance(label, int) and (label < 0 or (names is not None and label >= len(names))):
            valid = "0 or more" if names is None else f"0 … {len(names) - 1}"
            raise UserError(
                f"{place_of(table, row)}: label {label}, as in splits without labels. Use {valid}, "
                "or null for that split"
            )
    return [names[label] for label in labels] if names is not None else labels


class CaptionHubSettings(TableSettings):
    """Captioned images of a table.

    `caption_column`: a column of texts or of lists of texts, or several columns with one caption each.
    """

    kind: Literal["caption_hub"]
    caption_column: str | tuple[str, ...] = Field(min_length=1)


def read_caption_hub(settings: CaptionHubSettings, *, root: Path, progress: bool) -> Captioned:
    """Return the images and captions in their splits.

    Raises: UserError for a missing data set, split or column, a row without a caption, and an image that cannot be
        decoded.
    """
    tables = open_tables(settings, otherwise="data=digit_scenes or data=captions data.train=FILE")
    columns = (settings.caption_column,) if isinstance(settings.caption_column, str) else settings.caption_column
    given: dict[SplitName, Any] = {
        split: (table_pictures(table, settings.image_column), _captions(table, columns))
        for split, table in tables.items()
    }
    return store_captioned(
        Path(settings.dataset).name,
        given,
        settings,
        source=f"data.dataset={settings.dataset}",
        root=root,
        progress=progress,
    )


def _captions(table: Any, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the captions of each row, from all columns."""
    for column in columns:
        check_column(table, "data.caption_column", column)
    rows: list[tuple[str, ...]] = []
    for row, values in enumerate(zip(*(list(table[column]) for column in columns), strict=True)):
        rows.append(
            tuple(
                caption
                for column, value in zip(columns, values, strict=True)
                for caption in captions_of(value, f"{place_of(table, row)}[{column!r}]")
            )
        )
    return rows
