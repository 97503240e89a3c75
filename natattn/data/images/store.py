"""Encoded images → pixels on disk, made once for each content and size, and memory-mapped from there."""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from natattn.data.cache import cache_root, make_folder, replacing
from natattn.data.images.pixels import resized
from natattn.data.progress import Progress
from natattn.data.splits import SplitName, hash_share
from natattn.errors import UserError

Channels = Literal["grey", "rgb"]
_MODES: dict[Channels, str] = {"grey": "L", "rgb": "RGB"}
_FORMAT = 1  # part of every key: raise it when the same files give other pixels
_META = "meta.json"


class EncodedImages(Protocol):
    """Images as the bytes of their files."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The content of an image's file. Raises UserError where it cannot be read."""
        ...

    def where(self, index: int) -> str:
        """The name of an image, for messages."""
        ...


@dataclass(frozen=True)
class Store:
    """Where decoded images are kept, and how they are made.

    Args:
        cache: the folder, else see `cache_root`.
        progress: a bar on standard error for what takes long, where that is a terminal.
    """

    image_size: int
    channels: Channels
    cache: Path | None = None
    progress: bool = True

    def pixels(self, encoded: EncodedImages, hashes: Sequence[str], label: str) -> np.ndarray:
        """uint8 [images, size, size, channels], memory-mapped; made anew where it is not there or is damaged.

        Args:
            hashes: of the images, from `hashes_of`.

        Raises: UserError naming an image that cannot be decoded.
        """
        content = json.dumps([_FORMAT, self.image_size, self.channels, list(hashes)])
        folder = (self.cache or cache_root()) / "images" / hashlib.sha256(content.encode()).hexdigest()
        images = _read(folder)
        if images is None:
            self._write(folder, encoded, label)
            images = _read(folder)
        if images is None:
            raise UserError(f"the cache folder {folder} does not keep what is written to it")
        return images

    def _write(self, folder: Path, encoded: EncodedImages, label: str) -> None:
        make_folder(folder)
        channels = 1 if self.channels == "grey" else 3
        size = self.image_size * self.image_size * channels
        state = hashlib.sha256()
        with (
            Progress(f"decoding {label}", len(encoded) * size, self.progress) as bar,
            replacing(folder / "images.bin") as temporary,
            open(temporary, "wb") as file,
        ):
            for index in range(len(encoded)):
                content = self._decoded(encoded, index).tobytes()
                file.write(content)
                state.update(content)
                bar.advance(size)
        shape = [len(encoded), self.image_size, self.image_size, channels]
        with replacing(folder / _META) as temporary:
            temporary.write_text(json.dumps({"shape": shape, "sha256": state.hexdigest()}) + "\n", encoding="utf-8")

    def _decoded(self, encoded: EncodedImages, index: int) -> np.ndarray:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(encoded.read(index))) as image:
                    return resized(image, self.image_size, _MODES[self.channels])
        except UserError:
            raise
        except Exception as error:  # PIL's readers raise whatever a damaged file makes them
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "cannot identify" in cause:
                cause = "no image format that is known"
            raise UserError(f"{encoded.where(index)}: not an image that can be read: {cause}") from error


def hashes_of(encoded: EncodedImages) -> list[str]:
    """SHA-256 of the content of every image's file."""
    return [hashlib.sha256(encoded.read(index)).hexdigest() for index in range(len(encoded))]


def held_out(hashes: Sequence[str], validation_fraction: float, test_fraction: float) -> dict[SplitName, np.ndarray]:
    """{split: indices}, drawn by the images' hashes, so that no two equal images are in different splits.

    A fraction of 0 makes no split.
    """
    shares = np.array([hash_share(each.encode()) for each in hashes])
    both = validation_fraction + test_fraction
    splits: dict[SplitName, np.ndarray] = {"train": np.flatnonzero(shares >= both)}
    if validation_fraction:
        splits["validation"] = np.flatnonzero(shares < validation_fraction)
    if test_fraction:
        splits["test"] = np.flatnonzero((shares >= validation_fraction) & (shares < both))
    return splits


def _read(folder: Path) -> np.ndarray | None:
    """What was written; None where nothing was, or any byte has changed."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        with open(folder / "images.bin", "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != meta["sha256"]:
                return None
        return np.memmap(folder / "images.bin", dtype=np.uint8, mode="r", shape=tuple(meta["shape"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
