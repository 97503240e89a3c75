"""Labelled pictures of `datasets`: any image set of the hub, or a folder that it can load."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from natattn.data.images.hub_tables import TableSettings, check_column, open_tables, place_of, table_pictures
from natattn.data.images.labelled import Labelled, store_labelled
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

Label = str | int


class ImageHubSettings(TableSettings):
    """Pictures of a table, with `label_column` a column of numbers or texts."""

    kind: Literal["image_hub"]
    label_column: str


def read_hub(settings: ImageHubSettings, *, root: Path, progress: bool) -> Labelled:
    """The pictures in their splits.

    Raises UserError for a set, split or column that is not there, a label that train lacks, a row without a label and
    a picture that cannot be decoded.
    """
    tables = open_tables(settings, otherwise="data=digits or data=image_folder data.train=FOLDER")
    values = {split: _labels(table, settings.label_column) for split, table in tables.items()}
    names = getattr(tables["train"].features[settings.label_column], "names", None)
    classes: list[Label] = sorted(set(values["train"])) if names is None else names
    if len(set(values["train"])) < 2:
        raise UserError(
            f"data.label_column={settings.label_column}: all rows of {settings.train} are {values['train'][0]!r}; "
            "two or more classes are needed"
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
    """The label of each row: its name where the set has names, else the number or text itself."""
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
                f"{place_of(table, row)}: label {label}, as splits without labels have it; valid: {valid}, "
                "or null for that split"
            )
    return [names[label] for label in labels] if names is not None else labels
