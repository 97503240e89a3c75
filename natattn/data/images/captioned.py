"""Images with captions: from files of your own, or from any such set of `datasets` (Flickr-style)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from natattn.data.images.captions import caption_tokenizer, captioned
from natattn.data.images.digits import Fraction
from natattn.data.images.labelled import (
    SUFFIXES,
    ImageFiles,
    NotEmpty,
    check_column,
    image_column,
    load_hub_splits,
)
from natattn.data.images.pixels import check_not_empty, check_shift, digest, mean_and_std
from natattn.data.images.splits import ImageOptions, PairCorpus, PairSplit
from natattn.data.images.store import Channels, EncodedImages, Store, hashes_of, held_out
from natattn.data.splits import SplitName
from natattn.data.tokenizers import TokenizerSettings
from natattn.errors import UserError

Item = TypeVar("Item")


class CaptionFilesSettings(ImageOptions):
    """A .jsonl file whose lines name an image and its caption (or captions), or a folder: images/ and captions.txt."""

    kind: Literal["caption_files"]
    train: NotEmpty
    validation: NotEmpty | None
    test: NotEmpty | None
    channels: Channels
    validation_fraction: Fraction
    test_fraction: Fraction


class CaptionHubSettings(ImageOptions):
    """A set of the hub, or a folder that `datasets` loads; a caption column holds a text or a list of texts."""

    kind: Literal["caption_hub"]
    dataset: NotEmpty
    release: str | None
    image_column: NotEmpty
    caption_columns: Annotated[tuple[NotEmpty, ...], Field(min_length=1)]
    train: NotEmpty
    validation: NotEmpty | None
    test: NotEmpty | None
    channels: Channels
    validation_fraction: Fraction
    test_fraction: Fraction


@dataclass(frozen=True)
class Captioned:
    """Images and their captions, before they are decoded: one or more for each."""

    images: EncodedImages
    captions: list[list[str]]


def load_caption_files(
    settings: CaptionFilesSettings, tokenizer: TokenizerSettings, cache: Path | None, progress: bool
) -> PairCorpus:
    """The pairs of the files. Raises UserError for what is missing, unequal in number, or no image or caption."""
    paths = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    found = {
        name: _of_path(Path(path).expanduser(), f"data.{name}") for name, path in paths.items() if path is not None
    }
    return _corpus(Path(settings.train).stem, found, settings, tokenizer, cache, progress)


def load_caption_hub(
    settings: CaptionHubSettings, tokenizer: TokenizerSettings, cache: Path | None, progress: bool
) -> PairCorpus:
    """The pairs of a hub's set. Raises UserError for what is missing, or no image or caption."""
    found = {}
    for name, rows in load_hub_splits(settings).items():
        for column in settings.caption_columns:
            check_column(rows, column, "data.caption_columns")
        columns = [rows[column] for column in settings.caption_columns]
        captions = [
            [text for value in values for text in _texts(value, f"row {index} of the {name} split")]
            for index, values in enumerate(zip(*columns, strict=True))
        ]
        found[name] = Captioned(image_column(rows, settings.image_column), captions)
    return _corpus(settings.dataset.rstrip("/").rpartition("/")[2], found, settings, tokenizer, cache, progress)


def _of_path(path: Path, key: str) -> Captioned:
    if path.is_dir():
        return _of_folder(path, key)
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file or folder")
    return _of_lines(path)


def _of_folder(folder: Path, key: str) -> Captioned:
    """images/ in natural order, and captions.txt with a line for each."""
    images, text = folder / "images", folder / "captions.txt"
    if not images.is_dir() or not text.is_file():
        raise UserError(f"{key}={folder}: valid: a folder with images/ and captions.txt, or a .jsonl file")
    paths = sorted((path for path in images.iterdir() if path.suffix.lower() in SUFFIXES), key=_natural_order)
    lines = _read_lines(text)
    if len(paths) != len(lines):
        raise UserError(
            f"{key}={folder}: {len(paths)} images and {len(lines)} captions; valid: a line of captions.txt for each "
            "image, in the order of their names"
        )
    return Captioned(ImageFiles(paths), [_texts(line, f"{text}, line {n}") for n, line in enumerate(lines, start=1)])


def _natural_order(path: Path) -> tuple[int, str]:
    """Names that are numbers by their size, then the others."""
    return (int(path.stem), path.name) if path.stem.isdecimal() else (1 << 62, path.name)


def _of_lines(path: Path) -> Captioned:
    """Lines {"image": path beside the file, "caption": text or list of texts}."""
    paths: list[Path] = []
    captions: list[list[str]] = []
    for number, line in enumerate(_read_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        for name in ("image", "caption"):
            if not isinstance(entry, dict) or name not in entry:
                raise UserError(f'{where}: no key "{name}"; valid: {{"image": "picture.png", "caption": "a text"}}')
        if not isinstance(entry["image"], str) or not (path.parent / entry["image"]).is_file():
            raise UserError(f"{where}: no image {entry['image']} beside the file")
        paths.append(path.parent / entry["image"])
        captions.append(_texts(entry["caption"], where))
    return Captioned(ImageFiles(paths), captions)


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _texts(value: Any, where: str) -> list[str]:
    """The captions of one image."""
    texts = list(value) if isinstance(value, list | tuple) else [value]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {text!r} is no caption; valid: a text that is not empty")
    if not texts:
        raise UserError(f"{where}: no caption; valid: at least one")
    return [text.strip() for text in texts]


def _corpus(
    name: str,
    found: dict[str, Captioned],
    settings: CaptionFilesSettings | CaptionHubSettings,
    tokenizer_settings: TokenizerSettings,
    cache: Path | None,
    progress: bool,
) -> PairCorpus:
    """Decode what was found, hold out what is not given, and pair every caption with its image."""
    check_shift(settings.shift, settings.image_size)
    store = Store(settings.image_size, settings.channels, cache, progress)
    parts: dict[SplitName, tuple[np.ndarray, list[list[str]], list[str]]] = {}
    for split, each in found.items():
        hashes = hashes_of(each.images)
        images = store.pixels(each.images, hashes, split)
        chosen: dict[SplitName, np.ndarray] = {split: np.arange(len(images))}  # type: ignore[dict-item]
        if split == "train" and "validation" not in found:
            test_fraction = 0.0 if "test" in found else settings.test_fraction
            chosen = held_out(hashes, settings.validation_fraction, test_fraction)
        for part, indices in chosen.items():
            parts[part] = (images[indices], _of(each.captions, indices), _of(hashes, indices))
    check_not_empty([(split, len(parts[split][0]) if split in parts else 0) for split in ("train", "validation")])  # type: ignore[index]
    texts = {split: [text for captions in own for text in captions] for split, (_, own, _) in parts.items()}
    tokenizer = caption_tokenizer(tokenizer_settings, texts["train"], cache)
    tokens = captioned(texts, tokenizer)
    splits = {
        split: PairSplit(
            images=images,
            image_of=np.repeat(np.arange(len(images)), [len(each) for each in captions]),
            tokens=tokens[split][0],
            lengths=tokens[split][1],
            groups=np.repeat(_group_numbers(hashes), [len(each) for each in captions]),
            captions=tuple(texts[split]),
        )
        for split, (images, captions, hashes) in parts.items()
    }
    mean, std = mean_and_std(splits["train"].images)
    arrays = [array for split in splits.values() for array in (split.images, split.image_of, split.tokens)]
    return PairCorpus(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        tokenizer=tokenizer,
        mean=mean,
        std=std,
        fingerprint=digest(arrays, *splits),
        gallery=None,
    )


def _of(values: Sequence[Item], indices: np.ndarray) -> list[Item]:
    return [values[index] for index in indices.tolist()]


def _group_numbers(hashes: Sequence[str]) -> np.ndarray:
    """Int64: the same number for images of the same content."""
    return np.unique(np.array(hashes), return_inverse=True)[1].astype(np.int64)
