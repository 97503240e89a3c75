"""Training images moved and mirrored: a function of (seed, global index of the sample), whatever the batch."""

import numpy as np

from natattn.data.blocks import AUGMENTATION, scaled_words, uniform_words


def augmented(images: np.ndarray, *, shift: int, flip: bool, seed: int, first_sample: int) -> np.ndarray:
    """uint8 images [B, H, W, C], each moved by up to `shift` pixels and, with `flip`, mirrored with probability ½.

    Where an image is moved away from an edge, the edge is repeated. Image i is the sample `first_sample` + i.
    """
    if not shift and not flip:
        return images
    count, height, width, _ = images.shape
    words = uniform_words(seed, AUGMENTATION, first_sample, count)
    down, right = (scaled_words(words[:, axis], 2 * shift + 1) - shift for axis in (0, 1))
    rows = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    columns = np.clip(np.arange(width) - right[:, None], 0, width - 1)
    if flip:
        mirrored = scaled_words(words[:, 2], 2).astype(bool)
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    moved: np.ndarray = images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved
