"""Training pictures, moved and mirrored as their global sample index says."""

from typing import Literal

import numpy as np

from natattn.data.text.blocks import AUGMENTATION, sample_words, scale

Fill = Literal["edge", "zero"]


def augmented(
    images: np.ndarray, *, shift: int, flip: bool, seed: int, first_sample: int, fill: Fill = "edge"
) -> np.ndarray:
    """Uint8 [count, height, width, channels]: the pictures, each moved and mirrored by chance.

    A picture is moved by -shift … shift pixels in each direction, uniformly, and then mirrored, left to right, with
    probability ½ if `flip` is set. Image i has the global sample index first_sample + i, and (seed, that index) alone
    decides what happens to it, whatever batch it is in. `fill`: what appears at the sides that a picture was moved
    away from, its own edge or black.
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
    """A copy of each picture as seen from (row, column) of itself with a border of `shift` pixels."""
    count, height, width, channels = images.shape
    border = ((0, 0), (shift, shift), (shift, shift), (0, 0))
    padded = np.pad(images, border, mode="edge") if fill == "edge" else np.pad(images, border)
    # A pixel as one value of its channels: then a window's rows are copied whole, ten times as fast as by channel.
    pixels = np.ascontiguousarray(padded).view(np.dtype((np.void, channels)))[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (height, width), axis=(1, 2))
    moved: np.ndarray = windows[np.arange(count), rows, columns]
    return np.ascontiguousarray(moved).view(np.uint8).reshape(images.shape)
