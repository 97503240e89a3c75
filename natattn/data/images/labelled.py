"""Images with a class each, from folders (one for each class) or from any image set of `datasets`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from natattn.data.hub import load_hub_dataset
from natattn.data.images.digits import Fraction
from natattn.data.images.pixels import check_not_empty, check_shift, digest, mean_and_std
from natattn.data.images.splits import ImageCorpus, ImageOptions, ImageSplit
from natattn.data.images.store import Channels, EncodedImages, Store, hashes_of, held_out
from natattn.data.splits import SplitName
from natattn.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NotEmpty = Annotated[str, Field(min_length=1)]


class ImageFolderSettings(ImageOptions):
    """Folders with a sub-folder of images for each class; without `validation`, parts of `train` are held out."""

    kind: Literal["image_folder"]
    train: NotEmpty
    validation: NotEmpty | None
    test: NotEmpty | None
    channels: Channels
    validation_fraction: Fraction
    test_fraction: Fraction


class ImageHubSettings(ImageOptions):
    """An image set of the hub, or a folder that `datasets` loads; `train` and the others are names of its splits."""

    kind: Literal["image_hub"]
    dataset: NotEmpty
    release: str | None
    image_column: NotEmpty
    label_column: NotEmpty
    train: NotEmpty
    validation: NotEmpty | None
    test: NotEmpty | None
    channels: Channels
    validation_fraction: Fraction
    test_fraction: Fraction


@dataclass(frozen=True)
class ImageFiles:
    """Images in files of their own."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The content of the file."""
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise UserError(f"{self.paths[index]}: cannot be read: {error.strerror}") from error

    def where(self, index: int) -> str:
        """Its path."""
        return str(self.paths[index])


@dataclass(frozen=True)
class ImageColumn:
    """A column of images in a split of `datasets`."""

    rows: Any
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes:
        """The bytes that the row holds, or those of the file that it names."""
        value = self.rows[index][self.name]
        if isinstance(value, dict) and value.get("bytes") is not None:
            return bytes(value["bytes"])
        if isinstance(value, dict) and value.get("path"):
            return ImageFiles([Path(value["path"])]).read(0)
        raise UserError(f"{self.where(index)}: holds no image")

    def where(self, index: int) -> str:
        """Column and row."""
        return f"row {index} of column {self.name}"


@dataclass(frozen=True)
class Labelled:
    """Images and the names of their classes, before they are decoded."""

    images: EncodedImages
    labels: list[str]


def load_folders(settings: ImageFolderSettings, cache: Path | None, progress: bool) -> ImageCorpus:
    """The images of the folders. Raises UserError for what is missing, unknown or no image."""
    found = {
        name: _of_folder(Path(folder).expanduser(), f"data.{name}")
        for name, folder in (("train", settings.train), ("validation", settings.validation), ("test", settings.test))
        if folder is not None
    }
    classes = tuple(sorted(set(found["train"].labels)))
    return _corpus(Path(settings.train).name, found, classes, settings, cache, progress)


def load_image_hub(settings: ImageHubSettings, cache: Path | None, progress: bool) -> ImageCorpus:
    """The images of a hub's set. Raises UserError for what is missing, unknown or no image."""
    splits = load_hub_splits(settings)
    found = {}
    for name, rows in splits.items():
        column = image_column(rows, settings.image_column)
        found[name] = Labelled(column, _hub_labels(rows, settings.label_column))
    names = getattr(splits["train"].features[settings.label_column], "names", None)
    classes = tuple(names) if names else tuple(sorted(set(found["train"].labels), key=_natural))
    return _corpus(settings.dataset.rstrip("/").rpartition("/")[2], found, classes, settings, cache, progress)


def load_hub_splits(settings: Any) -> dict[str, Any]:
    """{split: rows} of the splits that the settings name. Raises UserError naming those that there are."""
    loaded = load_hub_dataset(settings.dataset, settings.release, "data=digits or data=digit_scenes")
    found = {}
    for name in ("train", "validation", "test"):
        split = getattr(settings, name)
        if split is None:
            continue
        if split not in loaded:
            raise UserError(f"data.{name}={split}: {settings.dataset} has no such split; valid: {', '.join(loaded)}")
        found[name] = loaded[split]
    return found


def image_column(rows: Any, name: str) -> ImageColumn:
    """A column's images as they are encoded. Raises UserError where there is no such column, or it holds no images."""
    from datasets import Image

    check_column(rows, name, "data.image_column")
    try:
        return ImageColumn(rows.select_columns([name]).cast_column(name, Image(decode=False)), name)
    except Exception as error:  # of arrow, for a column of another type
        raise UserError(f"data.image_column={name}: holds {rows.features[name]}, no images") from error


def check_column(rows: Any, name: str, key: str) -> None:
    """Raises: UserError naming the columns that there are."""
    if name not in rows.column_names:
        raise UserError(f"{key}={name}: no such column; valid: {', '.join(rows.column_names)}")


def _hub_labels(rows: Any, name: str) -> list[str]:
    check_column(rows, name, "data.label_column")
    names = getattr(rows.features[name], "names", None)
    labels = []
    for index, value in enumerate(rows[name]):
        if value is None or (names is not None and not 0 <= value < len(names)):
            raise UserError(f"data.label_column={name}: row {index} has no label ({value})")
        labels.append(names[value] if names is not None else str(value))
    return labels


def _natural(label: str) -> tuple[int, str]:
    """Numbers by their size, then words."""
    return (int(label), "") if label.isdecimal() else (1 << 62, label)


def _of_folder(folder: Path, key: str) -> Labelled:
    """The images below a folder's sub-folders, in the order of their names."""
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; valid: one with a sub-folder of images for each class")
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise UserError(f"{key}={folder}: has no sub-folders; valid: one with a sub-folder of images for each class")
    paths: list[Path] = []
    labels: list[str] = []
    for child in classes:
        own = sorted(path for path in child.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not own:
            raise UserError(f"{key}: {child} holds no image; valid: files ending in {', '.join(SUFFIXES)}")
        paths += own
        labels += [child.name] * len(own)
    return Labelled(ImageFiles(paths), labels)


def _corpus(
    name: str,
    found: dict[str, Labelled],
    classes: tuple[str, ...],
    settings: ImageFolderSettings | ImageHubSettings,
    cache: Path | None,
    progress: bool,
) -> ImageCorpus:
    """Decode what was found, and hold out what is not given."""
    check_shift(settings.shift, settings.image_size)
    if len(classes) < 2:
        raise UserError(f"data: one class ({classes[0]}) is nothing to tell apart; valid: two or more")
    store = Store(settings.image_size, settings.channels, cache, progress)
    numbers = {label: number for number, label in enumerate(classes)}
    splits: dict[SplitName, ImageSplit] = {}
    for split, labelled in found.items():
        unknown = next((label for label in labelled.labels if label not in numbers), None)
        if unknown is not None:
            raise UserError(f"data.{split}: class {unknown} is not in the train split; valid: {', '.join(classes)}")
        hashes = hashes_of(labelled.images)
        images = store.pixels(labelled.images, hashes, split)
        labels = np.array([numbers[label] for label in labelled.labels], dtype=np.int64)
        splits[split] = ImageSplit(images, labels)  # type: ignore[index]
        if split == "train" and "validation" not in found:
            test_fraction = 0.0 if "test" in found else settings.test_fraction
            parts = held_out(hashes, settings.validation_fraction, test_fraction)
            splits |= {part: ImageSplit(images[chosen], labels[chosen]) for part, chosen in parts.items()}
    check_not_empty([(split, len(splits[split]) if split in splits else 0) for split in ("train", "validation")])
    mean, std = mean_and_std(splits["train"].images)
    arrays = [array for split in splits.values() for array in (split.images, split.labels)]
    return ImageCorpus(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        classes=classes,
        mean=mean,
        std=std,
        fingerprint=digest(arrays, *splits, *classes),
    )
