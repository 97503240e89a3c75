"""The user's own labelled pictures: a folder for each class, as ImageNet has it."""

import os
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np

from natattn.data.images.labelled import Labelled, store_labelled
from natattn.data.images.options import GivenPictures
from natattn.data.images.pixels import picture_files
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageFolderSettings(GivenPictures):
    """Each of train, validation and test is a folder with a sub-folder for each class, searched to all depths.

    Where validation is null, held-out pictures are taken from train, drawn by a hash of their files.
    """

    kind: Literal["image_folder"]


def read_folder(settings: ImageFolderSettings, *, root: Path, progress: bool) -> Labelled:
    """The pictures in their splits.

    Raises UserError for a folder or class without pictures, a class that train lacks, and a file that is no image.
    """
    folders = settings.paths
    _check_overlap(folders)
    files = {split: _files_of_classes(folder, f"data.{split}={folder}") for split, folder in folders.items()}
    classes = tuple(files["train"])
    source = f"data.train={folders['train']}"
    if len(classes) < 2:
        raise UserError(f"{source}: one class only ({classes[0]}); two or more sub-folders with images are needed")
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
    """The name of a train folder, or, where that is "train", of the folder that it is in."""
    path = train.resolve()
    return path.parent.name if path.name == "train" and path.parent.name else path.name


def images_in(folder: Path) -> list[Path]:
    """The pictures in a folder, at all depths, in the order of their paths; hidden files are left out."""
    found = []
    for inner, names, files in os.walk(folder, followlinks=True):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [Path(inner, file) for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith(".")]
    return sorted(found)


def _files_of_classes(folder: Path, place: str) -> dict[str, list[Path]]:
    """{class: its pictures}, in alphabetical order of the classes."""
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
                f"data.{split}={folders[split]}: lies in data.{other}; held-out images must be other images"
            )


def _extensions() -> str:
    return ", ".join(EXTENSIONS)
