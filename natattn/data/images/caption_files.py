"""The user's own captioned pictures: lines of JSON that name images, or a folder of images and a file of lines."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from natattn.data.images.captioned import Captioned, captions_of, store_captioned
from natattn.data.images.folder import EXTENSIONS, corpus_name, images_in
from natattn.data.images.options import GivenPictures
from natattn.data.images.pixels import picture_files
from natattn.data.text.readers import Errors, jsonl_entries, text_pieces
from natattn.data.text.splits import SplitName
from natattn.errors import UserError

_FORMS = 'a .jsonl file of {"image": PATH, "caption": TEXT} or a folder with images/ and captions.txt'


class CaptionFilesSettings(GivenPictures):
    """Each of train, validation and test is a .jsonl file or a folder.

    A line of .jsonl has `image`, a path relative to the file, and `caption`, a text or a list of texts. A folder has
    images/ and captions.txt, with one line for each image in the natural order of their names (2 before 10).
    Where validation is null, held-out pictures are taken from train, drawn by a hash of their files.
    """

    kind: Literal["caption_files"]
    errors: Errors


def read_caption_files(settings: CaptionFilesSettings, *, root: Path, progress: bool) -> Captioned:
    """The pictures and captions in their splits.

    Raises UserError for what is missing, empty, unreadable or in two splits, and for captions that are not as many as
    the images.
    """
    sources = settings.paths
    seen: dict[Path, SplitName] = {}
    given: dict[SplitName, Any] = {}
    for split, path in sources.items():
        if (other := seen.setdefault(path.resolve(), split)) != split:
            raise UserError(f"data.{split}={path}: is data.{other} too; held-out images must be other images")
        paths, captions = _entries(path, f"data.{split}={path}", settings.errors)
        given[split] = (picture_files(paths, progress=progress), captions)
    train = sources["train"]
    return store_captioned(
        corpus_name(train), given, settings, source=f"data.train={train}", root=root, progress=progress
    )


def _entries(path: Path, place: str, errors: Errors) -> tuple[list[Path], list[tuple[str, ...]]]:
    """(images, captions of each)."""
    if os.path.isdir(path):
        return _of_folder(path, place, errors)
    if not os.path.isfile(path):
        raise UserError(f"{place}: no such file or folder (looked for {path.absolute()})")
    if not path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        raise UserError(f"{place}: not understood; valid: {_FORMS}")
    return _of_lines(path, place, errors)


def _of_lines(path: Path, place: str, errors: Errors) -> tuple[list[Path], list[tuple[str, ...]]]:
    paths, captions = [], []
    for line, entry in jsonl_entries(path, "the keys 'image' and 'caption'", errors):
        for key in ("image", "caption"):
            if key not in entry:
                raise UserError(f"{line}: no key {key!r}; there: {', '.join(entry) or 'nothing'}")
        if not isinstance(entry["image"], str):
            raise UserError(f"{line}: image is {type(entry['image']).__name__}, not a path")
        image = path.parent / entry["image"]
        if not os.path.isfile(image):
            raise UserError(f"{line}: no such image {image}")
        paths.append(image)
        captions.append(captions_of(entry["caption"], line))
    if not paths:
        raise UserError(f"{place}: the file has no lines; valid: {_FORMS}")
    return paths, captions


def _of_folder(folder: Path, place: str, errors: Errors) -> tuple[list[Path], list[tuple[str, ...]]]:
    images, file = folder / "images", folder / "captions.txt"
    if not (images.is_dir() and file.is_file()):
        missing = "captions.txt" if images.is_dir() else "images/"
        raise UserError(f"{place}: no {missing} there; valid: {_FORMS}")
    paths = sorted(images_in(images), key=lambda path: _natural(path.relative_to(images).as_posix()))
    if not paths:
        raise UserError(f"{place}: no image in images/; images are {', '.join(EXTENSIONS)}")
    lines = "".join(text_pieces(file, errors)).rstrip().split("\n")
    if len(lines) != len(paths):
        raise UserError(f"{place}: {len(paths)} images, but {len(lines)} captions; captions.txt needs a line for each")
    return paths, [captions_of(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]


def _natural(name: str) -> list[str | int]:
    """Sorts "2" before "10"."""
    # Texts and numbers alternate, so that only like is compared with like.
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]
