import itertools

import numpy as np
import pytest
from make_pictures import pixels

from natattn.data.images import augmented
from natattn.data.images.pixels import Fill

IMAGES = np.stack([pixels(number) for number in range(60)])


def reference(image: np.ndarray, down: int, right: int, mirrored: bool, fill: Fill) -> np.ndarray:
    """One picture, moved pixel by pixel."""
    height, width, _ = image.shape
    moved = np.zeros_like(image)
    for row, column in itertools.product(range(height), range(width)):
        source_row, source_column = row - down, column - right
        if fill == "edge":
            source_row, source_column = np.clip(source_row, 0, height - 1), np.clip(source_column, 0, width - 1)
        if 0 <= source_row < height and 0 <= source_column < width:
            moved[row, column] = image[source_row, source_column]
    return moved[:, ::-1] if mirrored else moved


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fill", ["edge", "zero"])
def test_every_picture_is_moved_and_mirrored_within_bounds(channels: int, fill: Fill) -> None:
    seen = set()
    images = np.ascontiguousarray(IMAGES[..., :channels])
    results = augmented(images, shift=1, flip=True, seed=0, first_sample=0, fill=fill)
    assert results.dtype == np.uint8
    assert results.shape == images.shape
    for image, result in zip(images, results, strict=True):
        ways = itertools.product((-1, 0, 1), (-1, 0, 1), (False, True))
        matching = [way for way in ways if np.array_equal(reference(image, *way, fill), result)]
        assert len(matching) == 1
        seen.update(matching)
    assert len(seen) > 14  # of the 18 ways that there are


@pytest.mark.parametrize(("shift", "flip"), [(2, False), (0, True), (1, True)])
def test_what_happens_to_a_picture_depends_on_seed_and_index_alone(shift: int, flip: bool) -> None:
    def run(first: int, stop: int, seed: int = 7) -> np.ndarray:
        return augmented(IMAGES[first:stop], shift=shift, flip=flip, seed=seed, first_sample=1000 + first)

    whole = run(0, 60)
    for size in (1, 7, 30):
        assert np.array_equal(np.concatenate([run(first, first + size) for first in range(0, 60, size)])[:60], whole)
    assert not np.array_equal(run(0, 60, seed=8), whole)


def test_moves_are_uniform() -> None:
    images = np.zeros((9000, 3, 3, 1), dtype=np.uint8)
    images[:, 1, 1] = 255
    moved = augmented(images, shift=1, flip=False, seed=1, first_sample=0, fill="zero")
    counts = np.bincount(moved.reshape(9000, 9).argmax(axis=1), minlength=9)
    assert ((counts - 1000) ** 2 / 1000).sum() < 26.1  # 8 degrees of freedom, one chance in a thousand


def test_the_pictures_given_are_left_alone() -> None:
    before = IMAGES.copy()
    augmented(IMAGES, shift=2, flip=True, seed=0, first_sample=0)
    assert np.array_equal(IMAGES, before)
    assert np.array_equal(augmented(IMAGES, shift=0, flip=False, seed=0, first_sample=0), IMAGES)
    assert augmented(IMAGES[:0], shift=1, flip=True, seed=0, first_sample=0).shape == (0, 6, 6, 3)
