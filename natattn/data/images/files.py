"""Images of the user: a folder for each class, or captions in lines of JSON or text."""

import os
import re
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from natattn.data.images.pixels import picture_files
from natattn.data.images.sources import Captioned, GivenPictures, Labelled, captions_of, store_captioned, store_labelled
from natattn.data.text.readers import Errors, jsonl_entries, text_pieces
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageFolderSettings(GivenPictures):
    """Each of train, validation and test is a folder with a sub-folder per class, searched recursively.

    If validation is null, held-out images are taken from train, drawn by a hash of their files.
    """

    kind: Literal["image_folder"]


def read_folder(settings: ImageFolderSettings, *, root: Path, progress: bool) -> Labelled:
    """Return the images in their splits.

    Raises: UserError for a folder or class without images, a class that train lacks, and a file that is not an image.
    """
    folders = settings.paths
    _check_overlap(folders)
    files = {split: _files_of_classes(folder, f"data.{split}={folder}") for split, folder in folders.items()}
    classes = tuple(files["train"])
    source = f"data.train={folders['train']}"
    if len(classes) < 2:
        raise UserError(f"{source}: only one class ({classes[0]}); at least two sub-folders with images are needed")
    given = {}
    for split, of_classes in files.items():
        if unknown := [name for name in of_classes if name not in files["train"]]:
            raise UserError(f"data.{split}={folders[split]}: class {unknown[0]} is not in {source}")
        paths = [path for of_class in of_classes.values() for path in of_class]
        labels = np.repeat([classes.index(name) for name in of_classes], [len(found) for found in of_classes.values()])
        given[split] = (picture_files(paths, progress=progress), labels.astype(np.int64))
    return store_labelled(
        corpus_name(folders["train"]), classes, given, settings, source=source, root=root, progress=progress
    )


def corpus_name(train: Path) -> str:
    """Return the name of a train folder, or of its parent if that name is "train"."""
    path = train.resolve()
    return path.parent.name if path.name == "train" and path.parent.name else path.name


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, recursively, in the order of their paths, without hidden files."""
    found = []
    for inner, names, files in os.walk(folder, followlinks=True):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [Path(inner, file) for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith(".")]
    return sorted(found)


def _files_of_classes(folder: Path, place: str) -> dict[str, list[Path]]:
    """Return {class: its images}, in alphabetical order of the classes."""
    if not os.path.isdir(folder):
        raise UserError(f"{place}: no such folder (looked for {folder.absolute()})")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"{place}: no sub-folder there; each class needs one, with its images ({_extensions()})")
    files = {path.name: images_in(path) for path in classes}
    if not any(files.values()):
        raise UserError(f"{place}: no image there; images are {_extensions()}")
    if empty := [name for name, found in files.items() if not found]:
        raise UserError(f"{place}: class {empty[0]} has no image; add some ({_extensions()}) or remove the folder")
    return files


def _check_overlap(folders: dict[SplitName, Path]) -> None:
    for split, other in permutations(reversed(folders), 2):
        if folders[split].resolve().is_relative_to(folders[other].resolve()):
            raise UserError(
                f"data.{split}={folders[split]}: is inside data.{other}; held-out images must be different images"
            )


def _extensions() -> str:
    return ", ".join(EXTENSIONS)


_FORMS = 'a .jsonl file of {"image": PATH, "caption": TEXT} or a folder with images/ and captions.txt'


class CaptionFilesSettings(GivenPictures):
    """Each of train, validation and test is a .jsonl file or a folder.

    A line of .jsonl has `image`, a path relative to the file, and `caption`, a text or a list of texts. A folder has
    images/ and captions.txt, with one line per image in the natural order of their names (2 before 10).
    If validation is null, held-out images are taken from train, drawn by a hash of their files.
    """

    kind: Literal["caption_files"]
    errors: Errors


def read_caption_files(settings: CaptionFilesSettings, *, root: Path, progress: bool) -> Captioned:
    """Return the images and captions in their splits.

    Raises: UserError for anything missing, empty, unreadable or in two splits, and if the numbers of images and
        captions differ.
    """
    sources = settings.paths
    seen: dict[Path, SplitName] = {}
    given: dict[SplitName, Any] = {}
    for split, path in sources.items():
        if (other := seen.setdefault(path.resolve(), split)) != split:
            raise UserError(f"data.{split}={path}: is also data.{other}; held-out images must be different images")
        paths, captions = _entries(path, f"data.{split}={path}", settings.errors)
        given[split] = (picture_files(paths, progress=progress), captions)
    train = sources["train"]
    return store_captioned(
        corpus_name(train), given, settings, source=f"data.train={train}", root=root, progress=progress
    )


def _entries(path: Path, place: str, errors: Errors) -> tuple[list[Path], list[tuple[str, ...]]]:
    """Return (images, captions of each)."""
    if os.path.isdir(path):
        return _of_folder(path, place, errors)
    if not os.path.isfile(path):
        raise UserError(f"{place}: no such file or folder (looked for {path.absolute()})")
    if not path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        raise UserError(f"{place}: unknown format. Use {_FORMS}")
    return _of_lines(path, place, errors)


def _of_lines(path: Path, place: str, errors: Errors) -> tuple[list[Path], list[tuple[str, ...]]]:
    paths, captions = [], []
    for line, entry in jsonl_entries(path, "the keys 'image' and 'caption'", errors):
        for key in ("image", "caption"):
            if key not in entry:
                raise UserError(f"{line}: no key {key!r}; the line has: {', '.join(entry) or 'none'}")
        if not isinstance(entry["image"], str):
            raise UserError(f"{line}: image is {type(entry['image']).__name__}, not a path")
        image = path.parent / entry["image"]
        if not os.path.isfile(image):
            raise UserError(f"{line}: no such image {image}")
        paths.append(image)
        captions.append(captions_of(entry["caption"], line))
    if not paths:
        raise UserError(f"{place}: the file has no lines. Use {_FORMS}")
    return paths, captions


def _of_folder(folder: Path, place: str, errors: Errors) -> tuple[list[Path], list[tuple[str, ...]]]:
    images, file = folder / "images", folder / "captions.txt"
    if not (images.is_dir() and file.is_file()):
        missing = "captions.txt" if images.is_dir() else "images/"
        raise UserError(f"{place}: no {missing} in it. Use {_FORMS}")
    paths = sorted(images_in(images), key=lambda path: _natural(path.relative_to(images).as_posix()))
    if not paths:
        raise UserError(f"{place}: no image in images/; images are {', '.join(EXTENSIONS)}")
    lines = "".join(text_pieces(file, errors)).rstrip().split("\n")
    if len(lines) != len(paths):
        raise UserError(f"{place}: {len(paths)} images, but {len(lines)} captions; one line per image is needed")
    return paths, [captions_of(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]


def _natural(name: str) -> list[str | int]:
    """Return a sort key with "2" before "10"."""
    # Texts and numbers alternate, so only values of the same type are compared.
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]
