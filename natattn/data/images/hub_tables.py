"""Pictures in tables of `datasets`, from the hub or a folder."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from natattn.data.hub import load_dataset
from natattn.data.images.options import GivenPictures
from natattn.data.images.pixels import Picture
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

_ROWS = 256


class TableSettings(GivenPictures):
    """`dataset` is a hub name or a folder, `release` its configuration or null; train, validation and test name splits.

    Where validation is null, held-out pictures are taken from train, drawn by a hash of their content.
    """

    dataset: str = Field(min_length=1)
    release: str | None
    image_column: str


def open_tables(settings: TableSettings, *, otherwise: str) -> dict[SplitName, Any]:
    """{split: `datasets.Dataset`} of the splits that are named, by their names in the set.

    Raises UserError if the set cannot be loaded, lacks a split, has no row in it or is asked for one split twice.
    """
    dataset = settings.dataset
    tables = load_dataset(dataset, settings.release, otherwise=otherwise)
    found: dict[SplitName, Any] = {}
    used: dict[str, SplitName] = {}
    for split, name in settings.named.items():
        if name not in tables:
            raise UserError(f"data.{split}={name}: {dataset} has no such split; valid: {', '.join(map(str, tables))}")
        if not len(tables[name]):
            raise UserError(f"data.{split}={name}: the split of {dataset} has no rows")
        if (other := used.setdefault(name, split)) != split:
            raise UserError(
                f"data.{split}={name}: the same split as data.{other}; held-out images must be other images"
            )
        found[split] = tables[name]
    return found


def check_column(table: Any, key: str, column: str) -> None:
    """Raise UserError unless the table has the column that the setting `key` names."""
    if column not in table.column_names:
        raise UserError(f"{key}={column}: no such column; valid: {', '.join(table.column_names)}")


def place_of(table: Any, row: int) -> str:
    """How messages name a row: as Python would address it."""
    return f"data.dataset: {table.split}[{row}]"


def table_pictures(table: Any, column: str) -> list[Picture]:
    """The pictures of a column, hashed. Raises UserError if there is no such column or it holds no pictures."""
    encoded = _encoded(table, column)
    pictures = []
    for row, content in enumerate(_contents(encoded, column)):
        if content is None:
            raise UserError(f"{place_of(table, row)}: no image in column {column}")
        digest = hashlib.sha256(content).digest()
        pictures.append(Picture(place_of(table, row), digest, len(content), partial(_read, encoded, column, row)))
    return pictures


def _encoded(table: Any, column: str) -> Any:
    """The table with that column alone, each picture as {"bytes", "path"} and not decoded."""
    import datasets

    check_column(table, "data.image_column", column)
    feature = table.features[column]
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    is_pair = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    if not (isinstance(feature, datasets.Image) or is_binary or is_pair):
        images = [name for name, other in table.features.items() if isinstance(other, datasets.Image)]
        raise UserError(
            f"data.image_column={column}: holds no images; valid: {', '.join(images) or 'nothing: no column does'}"
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
