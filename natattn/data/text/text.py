"""The user's text: files, folders and globs of .txt, .jsonl and .parquet, also gzipped."""

import glob
import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from natattn.config.base import Settings
from natattn.data.text.readers import (
    FORMATS,
    Errors,
    content_digest,
    cut_pieces,
    format_of,
    is_gzipped,
    jsonl_documents,
    open_bytes,
    parquet_documents,
    text_pieces,
    text_size,
)
from natattn.data.text.splits import SplitName, hash_number
from natattn.errors import UserError

_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_CUT_SEARCH = 1 << 16  # bytes after the intended cut that are searched for a blank line
_EXTENSIONS = f"{', '.join(FORMATS)}, each also with .gz"
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


class TextSettings(Settings):
    """Each of train, validation and test is a file, a folder (searched recursively), a glob or a list of these.

    If validation or test is null, held-out text is taken from train (test only if validation is null too).
    """

    kind: Literal["text"]
    train: str | tuple[str, ...]
    validation: str | tuple[str, ...] | None
    test: str | tuple[str, ...] | None
    field: str
    errors: Errors
    validation_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(ge=0, lt=0.5)


class TextCorpus:
    """A .txt file is one document; so is each line of .jsonl and each row of .parquet.

    Held-out text is taken from train: the end of a single .txt file, cut at a blank line, so that neighbouring
    paragraphs stay in one split; otherwise the documents with the smallest content hashes, so that the choice does not
    depend on the order and equal documents stay together.

    Raises: UserError for anything missing, empty, unreadable, of unknown extension or in more than one split.
    """

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self._files = {
            split: find_files(value, f"data.{split}")
            for split in _SPLITS
            if (value := getattr(settings, split)) is not None
        }
        self._check_overlap()
        self.name = self._files["train"][0].name if len(self._files["train"]) == 1 else "text"

    @property
    def splits(self) -> tuple[SplitName, ...]:
        return tuple(split for split in _SPLITS if split in self._files or self._held_out_fractions.get(split))

    def digest(self, split: SplitName) -> str:
        """Return a hash of the split's files and, if it is drawn from train, of the rule that draws it."""
        own = split in self._files and not (split == "train" and self._held_out_fractions)
        rule = None if own else [split, self._held_out_fractions]
        files = self._files.get(split, self._files["train"])
        content = [(format_of(file), self._file_digests[file].hex()) for file in files]
        return hashlib.sha256(
            json.dumps([content, self.settings.field, self.settings.errors, rule]).encode()
        ).hexdigest()

    def size(self, split: SplitName) -> int | None:
        files = self._files.get(split, self._files["train"])
        if any(is_gzipped(file) or format_of(file) == ".parquet" for file in files):
            return None
        held_out = self._held_out_fractions
        share = held_out.get(split, 1 - sum(held_out.values()) if split == "train" else 1)
        return int(sum(text_size(file) for file in files) * share)

    def documents(self, split: SplitName) -> Iterator[Iterable[str]]:
        held_out = self._held_out_fractions
        if split in self._files and not (split == "train" and held_out):
            yield from (pieces for _, pieces in self._keyed_documents(self._files[split]))
        elif self._is_single_text:
            yield text_pieces(self._files["train"][0], self.settings.errors, *self._spans[split])
        else:
            low, high = self._hash_ranges[split]
            for key, pieces in self._keyed_documents(self._files["train"]):
                if low <= key < high:
                    yield pieces

    @cached_property
    def _held_out_fractions(self) -> dict[SplitName, float]:
        """Return the share of train taken by each split without files of its own."""
        if "validation" in self._files:
            return {}
        fractions: dict[SplitName, float] = {"validation": self.settings.validation_fraction}
        if "test" not in self._files and self.settings.test_fraction:
            fractions["test"] = self.settings.test_fraction
        return fractions

    @property
    def _is_single_text(self) -> bool:
        return len(self._files["train"]) == 1 and format_of(self._files["train"][0]) == ".txt"

    @cached_property
    def _file_digests(self) -> dict[Path, bytes]:
        """Return a hash of the stored bytes of each file, read again for each corpus to detect changes."""
        return {file: content_digest(file) for files in self._files.values() for file in files}

    def _keyed_documents(self, files: list[Path]) -> Iterator[tuple[int, Iterable[str]]]:
        """Yield (hash of the content, pieces) of each document."""
        errors, field = self.settings.errors, self.settings.field
        for file in files:
            kind = format_of(file)
            if kind == ".txt":
                yield hash_number(self._file_digests[file]), text_pieces(file, errors)
                continue
            read = jsonl_documents if kind == ".jsonl" else parquet_documents
            for text in read(file, field, errors):
                if text:
                    yield hash_number(text.encode()), cut_pieces(text)

    @cached_property
    def _spans(self) -> dict[SplitName, tuple[int, int]]:
        """Return bytes [start, stop) of the single text file for each split: train first, held-out text after it."""
        file = self._files["train"][0]
        size = text_size(file)
        held_out = self._held_out_fractions
        spans: dict[SplitName, tuple[int, int]] = {}
        start, remaining, smallest = 0, 1.0, min(held_out.values())
        for split, share in [("train", 1 - sum(held_out.values())), *held_out.items()]:
            remaining -= share
            last = split == list(held_out)[-1]
            # The cut moves by less than half of the smallest part, so no part becomes empty.
            stop = size if last else _cut_after(file, int(size * (1 - remaining)), int(size * smallest / 2))
            if stop <= start:
                raise UserError(
                    f"data.train={self.settings.train}: {size} bytes are too few to be split; "
                    "give data.validation or more text"
                )
            spans[split] = (start, stop)
            start = stop
        return spans

    @cached_property
    def _hash_ranges(self) -> dict[SplitName, tuple[int, int]]:
        """Return the content hashes [low, high) of each split's documents."""
        keys = array("Q", (key for key, _ in self._keyed_documents(self._files["train"])))
        ordered = np.unique(np.frombuffer(keys, dtype=np.uint64))  # equal documents count once
        ranges: dict[SplitName, tuple[int, int]] = {}
        low = taken = 0
        for split, share in self._held_out_fractions.items():
            taken += math.ceil(len(ordered) * share)
            if taken >= len(ordered):
                raise UserError(
                    f"data.train={self.settings.train}: {len(ordered)} distinct documents are too few to be split; "
                    "give data.validation or more documents"
                )
            ranges[split] = (low, int(ordered[taken]))
            low = int(ordered[taken])
        return ranges | {"train": (low, 1 << 64)}

    def _check_overlap(self) -> None:
        seen: dict[Path, SplitName] = {}
        for split, files in self._files.items():
            for file in files:
                other = seen.setdefault(file.resolve(), split)
                if other != split:
                    raise UserError(f"data.{split}: {file} is also in data.{other}; held-out text must differ")


def find_files(value: str | tuple[str, ...], key: str) -> list[Path]:
    """Return the files that a setting names, each once, in its order and sorted within a folder or glob.

    Empty files are errors if named and ignored if found. Raises: UserError naming `key`.
    """
    values = (value,) if isinstance(value, str) else value
    files = [file for one in values for file in _files_of(one, key)]
    if not files:
        raise UserError(f"{key}: an empty list. Use a file, a folder or a glob")
    return list(dict.fromkeys(files))


def _files_of(value: str, key: str) -> list[Path]:
    if value in ("", "???"):  # ??? marks a missing value in YAML, and is also a glob
        raise UserError(f"{key} must be given: a file, a folder, a glob or a list of these")
    path = Path(os.path.expanduser(value))
    if os.path.isfile(path):  # unlike Path.is_file, also for a name that is too long
        if format_of(path) is None:
            raise UserError(f"{key}={value}: unknown extension. Use {_EXTENSIONS}")
        if not path.stat().st_size:
            raise UserError(f"{key}={value}: the file is empty")
        return [path]
    if os.path.isdir(path):
        found: Iterable[Path] = path.rglob("*")
    elif glob.has_magic(value):
        found = map(Path, glob.iglob(str(path), recursive=True))
    else:
        raise UserError(f"{key}={value}: no such file or folder (looked for {path.absolute()})")
    files = sorted(file for file in found if format_of(file) and file.is_file() and file.stat().st_size)
    if not files:
        raise UserError(f"{key}={value}: no file with text in it. Use {_EXTENSIONS}")
    return files


def _cut_after(file: Path, position: int, reach: int) -> int:
    """Return a cut of a text file: after the first blank line, else line, else character that ends after `position`.

    Lines are searched for in `reach` bytes.
    """
    with open_bytes(file) as stream:
        stream.seek(position)
        window = stream.read(max(4, min(reach, _CUT_SEARCH)))
    if blank := _BLANK_LINE.search(window):
        return position + blank.end()
    if (line := window.find(b"\n")) >= 0:
        return position + line + 1
    continuation = 0b10000000  # of a UTF-8 character: 10xxxxxx
    return position + next((i for i, byte in enumerate(window) if byte & 0b11000000 != continuation), len(window))
