"""Encoded pictures → pixels of one size on disk, made once for each content."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from natattn.config.messages import first_line
from natattn.data.cache import found_or_made, replacing
from natattn.data.progress import Progress
from natattn.data.text.blocks import AUGMENTATION, sample_words, scale
from natattn.data.text.readers import content_digest
from natattn.errors import UserError
from natattn.storage.atomic import sha256_of
from natattn.storage.documents import hash_of

if TYPE_CHECKING:
    from PIL.Image import Image

Fill = Literal["edge", "zero"]
Channels = Literal["grey", "rgb"]
CHANNEL_COUNTS: dict[Channels, int] = {"grey": 1, "rgb": 3}

_FORMAT = 1  # part of every key: raise it when the same pictures give other pixels
_META = "meta.json"
_PIXELS = "pixels.bin"
_THREADS = min(16, os.cpu_count() or 1)
_TOGETHER = 64  # pictures decoded together, which bounds the memory


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture.

    `place`: how messages name it. `digest`: SHA-256 of its content. `size`: bytes of it. `read`: gives its content.
    """

    place: str
    digest: bytes
    size: int
    read: Callable[[], bytes]

    @property
    def key(self) -> int:
        """Return the `hash_number` of its content, which draws held-out images."""
        return int.from_bytes(self.digest[:8])


@dataclass(frozen=True, eq=False)
class Pixels:
    """`array`: uint8 [count, height, width, channels]. `digest`: hash of it.

    `sums`, `squares`: over all pixels of each channel, of the values 0 … 255 and of their squares.
    """

    array: np.ndarray
    digest: str
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, standard deviation) of each channel with pixels in 0 … 1; of a constant channel, deviation 1."""
        count = self.array[..., 0].size
        # In integers, so that a constant channel has a variance of exactly 0.
        variances = [count * square - total**2 for total, square in zip(self.sums, self.squares, strict=True)]
        mean = tuple(total / (255 * count) for total in self.sums)
        return mean, tuple(variance**0.5 / (255 * count) if variance else 1.0 for variance in variances)


def picture_files(paths: Sequence[Path], *, progress: bool) -> list[Picture]:
    """The pictures in files, hashed anew at every call, so that no change is missed.

    Raises UserError for a file that cannot be read.
    """
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]  # a link to nothing is met below
    pictures = []
    with (
        Progress("hashing images", sum(sizes), progress) as bar,
        ThreadPoolExecutor(max_workers=_THREADS) as executor,
    ):
        for path, size, digest in zip(paths, sizes, executor.map(content_digest, paths), strict=True):
            pictures.append(Picture(str(path), digest, size, path.read_bytes))
            bar.advance(size)
    return pictures


def pixels_in_memory(array: np.ndarray) -> Pixels:
    """Pixels of pictures that were not read from files: uint8 [count, height, width, channels]."""
    sums, squares = _sums(array)
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
    return Pixels(array, digest, sums, squares)


def stored_pixels(
    pictures: Sequence[Picture], size: int, channels: Channels, *, root: Path, label: str, progress: bool
) -> Pixels:
    """Return the pixels of the images, in order, uint8 [count, size, size, channels], from the cache if possible.

    The largest centred square of each image is resized. Pixels on disk are hashed, and damaged ones are decoded again.
    Raises: UserError naming an image that cannot be decoded.
    """
    shape = (len(pictures), size, size, CHANNEL_COUNTS[channels])
    content = hashlib.sha256(b"".join(picture.digest for picture in pictures)).hexdigest()
    folder = root / "images" / hash_of([_FORMAT, version("pillow"), shape, content])

    def decode() -> None:
        with Progress(label, sum(picture.size for picture in pictures), progress) as bar:
            _write(folder, _decoded(pictures, size, channels, bar.advance))

    return found_or_made(folder, partial(_read, folder, shape), decode)


def resized(image: "Image", size: int) -> "Image":
    """Resize the largest centred square of an image to size × size pixels."""
    from PIL.Image import Resampling

    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _read(folder: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return the pixels of a cache entry; None if it is missing or damaged."""
    try:
        meta = _checked_meta(folder)
        array = np.memmap(folder / _PIXELS, dtype=np.uint8, mode="r", shape=shape)
        digest = hash_of([shape, meta["sha256"]])
        return Pixels(array, digest, tuple(map(int, meta["sums"])), tuple(map(int, meta["squares"])))
    except _NOT_AN_ENTRY:
        return None


def entry_is_whole(folder: Path) -> bool:
    """Return whether a folder of the cache's ``images`` is undamaged."""
    try:
        _checked_meta(folder)
    except _NOT_AN_ENTRY:
        return False
    return True


_NOT_AN_ENTRY = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _checked_meta(folder: Path) -> dict[str, Any]:
    """Return the description of an entry. Raises: one of ``_NOT_AN_ENTRY`` if any byte is damaged."""
    meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
    if meta.pop("check") != hash_of(meta):
        raise ValueError(f"{folder / _META} is damaged")
    if sha256_of(folder / _PIXELS) != meta["sha256"]:
        raise ValueError(f"{folder / _PIXELS} is damaged")
    return meta


def _write(folder: Path, chunks: Iterable[np.ndarray]) -> None:
    """Write the pixels and then the description that makes them an entry."""
    state = hashlib.sha256()
    moments = []
    with replacing(folder / _PIXELS) as temporary, open(temporary, "wb") as file:
        for chunk in chunks:
            content = chunk.tobytes()
            file.write(content)
            state.update(content)
            moments.append(_sums(chunk))
    sums, squares = (
        [sum(values) for values in zip(*of_chunks, strict=True)] for of_chunks in zip(*moments, strict=True)
    )
    meta: dict[str, Any] = {"sha256": state.hexdigest(), "sums": sums, "squares": squares}
    with replacing(folder / _META) as temporary:
        temporary.write_text(json.dumps(meta | {"check": hash_of(meta)}, indent=2) + "\n", encoding="utf-8")


def _sums(array: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (sums, sums of squares) of each channel, exactly."""
    axes = (0, 1, 2)
    sums = array.sum(axis=axes, dtype=np.uint64)
    squares = np.square(array, dtype=np.uint16).sum(axis=axes, dtype=np.uint64)  # 255² is just below 2^16
    return tuple(sums.tolist()), tuple(squares.tolist())


def _decoded(
    pictures: Sequence[Picture], size: int, channels: Channels, advance: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Yield uint8 [at most _TOGETHER, size, size, channels], in the order of the images."""
    from PIL import Image

    # Threads, because PIL's decoders release the interpreter lock.
    with ThreadPoolExecutor(max_workers=_THREADS) as executor:
        for first in range(0, len(pictures), _TOGETHER):
            together = pictures[first : first + _TOGETHER]
            # Read in one thread: the source need not be thread-safe.
            contents = [_content(picture) for picture in together]
            places = [picture.place for picture in together]
            with warnings.catch_warnings():  # set for all threads at once, because the filters are global
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                decoded = list(executor.map(partial(_decode, size=size, channels=channels), places, contents))
            yield np.stack(decoded)
            advance(sum(map(len, contents)))


def _content(picture: Picture) -> bytes:
    try:
        content = picture.read()
    except OSError as error:
        raise UserError(f"{picture.place}: cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(content).digest() != picture.digest:
        raise UserError(f"{picture.place}: changed while it was being read. Start again")
    return content


def _decode(place: str, content: bytes, *, size: int, channels: Channels) -> np.ndarray:
    """Decode to uint8 [size, size, channels]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)  # cameras store the orientation next to the pixels
            plain = _of_eight_bits(image).convert("L" if channels == "grey" else "RGB")
            return np.asarray(resized(plain, size)).reshape(size, size, -1)
    except Exception as error:  # of a type that depends on the format: not an image, truncated, damaged, too large
        cause = "not an image that PIL can read" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UserError(f"{place}: cannot be decoded ({cause})") from error


def _of_eight_bits(image: "Image") -> "Image":
    """Convert to 0 … 255 per channel: PIL would clip larger values and drop the colours of a palette."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey; PIL has no mode for colours of more than 8 bits
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def augmented(
    images: np.ndarray, *, shift: int, flip: bool, seed: int, first_sample: int, fill: Fill = "edge"
) -> np.ndarray:
    """Return randomly shifted and mirrored images, uint8 [count, height, width, channels].

    An image is shifted by -shift … shift pixels in each direction, uniformly, and then mirrored, left to right, with
    probability ½ if `flip` is set. Image i has the global sample index first_sample + i; its augmentation depends only
    on (seed, that index). `fill`: fill uncovered sides with the image's edge or with zeros.
    """
    if not len(images) or not (shift or flip):
        return images
    words = sample_words(seed, AUGMENTATION, first_sample, len(images))
    moved = _moved(images, scale(words[:, 0], 2 * shift + 1), scale(words[:, 1], 2 * shift + 1), shift, fill)
    if flip:
        mirrored = scale(words[:, 2], 2) == 1
        moved[mirrored] = moved[mirrored, :, ::-1]
    return moved


def _moved(images: np.ndarray, rows: np.ndarray, columns: np.ndarray, shift: int, fill: Fill) -> np.ndarray:
    """Return a window of each padded image that starts at (row, column)."""
    count, height, width, channels = images.shape
    border = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = np.pad(images, border, mode="edge") if fill == "edge" else np.pad(images, border)
    # View the channels of a pixel as one value: rows of a window are then copied at once, ten times faster.
    pixels = np.ascontiguousarray(padded).view(np.dtype((np.void, channels)))[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (height, width), axis=(1, 2))
    moved: np.ndarray = windows[np.arange(count), rows, columns]
    return np.ascontiguousarray(moved).view(np.uint8).reshape(images.shape)
