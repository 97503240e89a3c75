"""The default corpus: the source text of the running Python's standard library."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from natattn.config.base import Settings
from natattn.data.text.splits import SplitName, hash_share
from natattn.errors import UserError

# Installed packages are not the standard library, tests are repetitive, the rest is generated or data.
_FOLDERS_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "encodings",
    "pydoc_data",
    "_bundled",
}
_FILES_LEFT_OUT = {"html/entities.py", "stringprep.py"}
_PREFIXES_LEFT_OUT = ("_sysconfigdata", "config-", "lib-dynload")  # paths and flags of one build


class StdlibSettings(Settings):
    """The standard library; held-out files are drawn by a hash of their relative paths."""

    kind: Literal["stdlib"]
    validation_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(ge=0, lt=0.5)


class StdlibCorpus:
    """Documents are the .py files in the order of their relative paths, each content once."""

    def __init__(self, settings: StdlibSettings, root: Path | None = None) -> None:
        self.settings = settings
        self.root = root or Path(sysconfig.get_path("stdlib"))
        self.name = f"stdlib-{platform.python_version()}"

    @property
    def splits(self) -> tuple[SplitName, ...]:
        return ("train", "validation", "test") if self.settings.test_fraction else ("train", "validation")

    def digest(self, split: SplitName) -> str:
        """Return a hash of the relative paths and contents of the split."""
        state = hashlib.sha256()
        for name, text in self._files[split]:
            state.update(f"{name}\0{len(text)}\0".encode())
            state.update(text)
        return state.hexdigest()

    def size(self, split: SplitName) -> int:
        return sum(len(text) for _, text in self._files[split])

    def documents(self, split: SplitName) -> Iterator[Iterable[str]]:
        for _, text in self._files[split]:
            yield (text.decode(),)

    @cached_property
    def _files(self) -> dict[SplitName, list[tuple[str, bytes]]]:
        files: dict[SplitName, list[tuple[str, bytes]]] = {name: [] for name in self.splits}
        seen: set[bytes] = set()
        for path in self._paths():
            text = path.read_bytes()
            content = hashlib.sha256(text).digest()
            if not text or content in seen or not _is_utf8(text):
                continue
            seen.add(content)
            name = path.relative_to(self.root).as_posix()
            files[self._split_of(name)].append((name, text))
        if not all(files.values()):
            raise UserError(
                f"data=stdlib found too few .py files in {self.root} (a zipped or stripped Python?); "
                "use data=text data.train=FILE, data=grammar or data=wikitext2"
            )
        return files

    def _paths(self) -> list[Path]:
        found = []
        for folder, names, files in os.walk(self.root):
            names[:] = [name for name in names if name not in _FOLDERS_LEFT_OUT]  # not walked: they can be huge
            found += [Path(folder, file) for file in files if file.endswith(".py")]
        kept = [path for path in found if not _left_out(path.relative_to(self.root))]
        return sorted(kept, key=lambda path: path.relative_to(self.root).as_posix())

    def _split_of(self, name: str) -> SplitName:
        share = hash_share(name.encode())
        if share < self.settings.validation_fraction:
            return "validation"
        return "test" if share < self.settings.validation_fraction + self.settings.test_fraction else "train"


def _left_out(path: Path) -> bool:
    return path.as_posix() in _FILES_LEFT_OUT or path.parts[0].startswith(_PREFIXES_LEFT_OUT)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
