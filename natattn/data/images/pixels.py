"""What is counted, hashed and resized of images, whatever they come from."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from natattn.errors import UserError

_ROWS = 4096  # images that are counted at a time


def mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [count, H, W, C], of pixels in 0 … 1.

    A channel that is the same everywhere has the standard deviation of one grey level, so that it can be divided by.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), _ROWS):
        part = images[start : start + _ROWS]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    variance = counts @ levels**2 / counts.sum(1) - mean**2
    std = np.sqrt(np.maximum(variance, (1 / 255) ** 2))
    return tuple(mean.tolist()), tuple(std.tolist())


def digest(arrays: Iterable[np.ndarray], *texts: str) -> str:
    """SHA-256 over shapes, dtypes and contents."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.shape} {array.dtype.str}\0".encode())
        for start in range(0, len(array), _ROWS):
            state.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
    for text in texts:
        state.update(text.encode() + b"\0")
    return state.hexdigest()


def resized(image: Any, size: int, mode: str) -> np.ndarray:
    """A PIL image as uint8 [size, size, channels]: its largest square in the middle, resized (bilinear).

    Args:
        mode: L (grey) or RGB.
    """
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.convert(mode).crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square, dtype=np.uint8).reshape(size, size, -1)


def check_shift(shift: int, image_size: int) -> None:
    """Raises: UserError for a shift that moves the image out of the picture."""
    if shift >= image_size:
        raise UserError(f"data.shift={shift}: moves images of {image_size} pixels away; valid: below {image_size}")


def check_not_empty(counts: Sequence[tuple[str, int]]) -> None:
    """Raises: UserError naming the first split without anything in it."""
    for name, count in counts:
        if not count:
            raise UserError(f"data: nothing is left for the {name} split; valid: more images, or other fractions")
