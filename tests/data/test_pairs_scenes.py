import itertools
import re
import time

import numpy as np
import pytest

from natattn.data.images import DigitScenesSettings, PairCorpus, PairSplit, prepare_pairs
from natattn.data.images.digits import DIGIT_NAMES, digit_pictures
from natattn.data.text.tokenizers import ByteSettings
from natattn.errors import UserError

FIELDS = {
    "kind": "digit_scenes",
    "seed": 0,
    "train_pairs": 1000,
    "validation_galleries": 2,
    "test_galleries": 1,
    "image_size": 16,
    "shift": 1,
    "flip": False,
    "validation_fraction": 0.15,
    "test_fraction": 0.2,
}
CAPTION = re.compile(r"an? (\w+) (left of|right of|above|below) an? (\w+)")


def run(**changes: object) -> PairCorpus:
    return prepare_pairs(DigitScenesSettings.model_validate(FIELDS | changes), ByteSettings(kind="byte"))


def splits(corpus: PairCorpus) -> list[PairSplit]:
    assert corpus.test is not None
    return [corpus.train, corpus.validation, corpus.test]


def meaning(caption: str) -> tuple[int, int, bool]:
    """(left or upper digit, right or lower one, whether they stand one above the other)."""
    match = CAPTION.fullmatch(caption)
    assert match is not None
    subject, other = (DIGIT_NAMES.index(match.group(part)) for part in (1, 3))
    if match.group(2) in ("right of", "below"):
        subject, other = other, subject
    return subject, other, match.group(2) in ("above", "below")


def reconstruct(scene: np.ndarray, caption: str) -> tuple[int, int]:
    """The two digits, of all 1,797, whose drawing as the caption says it gives this very scene."""
    first, second, above = meaning(caption)
    for free in (0, 1):
        cells = [(place, free) if above else (free, place) for place in (0, 1)]
        candidates = [fitting(scene, digit, *cell) for digit, cell in zip((first, second), cells, strict=True)]
        for one, other in itertools.product(*candidates):
            drawn = np.zeros_like(scene)
            for member, window in (one, other):
                drawn[window] = np.maximum(drawn[window], digit_pictures()[0][member])
            if np.array_equal(drawn, scene):
                return one[0], other[0]
    raise AssertionError(f"no two digits make the scene {caption!r}")


def fitting(scene: np.ndarray, digit: int, row: int, column: int) -> list[tuple[int, tuple[slice, slice]]]:
    """(index, window) of each picture of a digit of which no pixel is brighter than the scene's at that window."""
    images, labels = digit_pictures()
    members = np.flatnonzero(labels == digit)
    found = []
    for top, left in itertools.product(*([0, 1] if index == 0 else [7, 8] for index in (row, column))):
        window = slice(top, top + 8), slice(left, left + 8)
        fits = (images[members] <= scene[window]).all(axis=(1, 2))
        found += [(member, window) for member in members[fits].tolist()]
    return found


def test_captions_are_true_to_the_pictures_and_no_digit_is_in_two_splits() -> None:
    corpus = run()
    used: list[set[int]] = []
    for split in splits(corpus):
        used.append(set())
        for image, caption in zip(split.images[:60, ..., 0], split.captions, strict=False):
            used[-1].update(reconstruct(image, caption))
    assert min(map(len, used)) > 50
    assert len(set.union(*used)) == sum(map(len, used))


def test_groups_are_the_meanings_of_the_captions() -> None:
    for split in splits(run()):
        for group, caption in zip(split.groups.tolist(), split.captions, strict=True):
            first, second, above = meaning(caption)
            assert group == 100 * above + 10 * first + second
        text = " ".join(split.captions)
        assert "an eight" in text
        assert "a eight" not in text
    phrases = {CAPTION.fullmatch(caption).group(2) for caption in run().train.captions}  # type: ignore[union-attr]
    assert phrases == {"left of", "right of", "above", "below"}


def test_a_gallery_has_each_meaning_once_in_its_own_order() -> None:
    corpus = run()
    assert corpus.gallery == 200
    _, validation, test = splits(corpus)
    galleries = [*validation.groups.reshape(-1, 200).tolist(), *test.groups.reshape(-1, 200).tolist()]
    assert len(galleries) == 3
    assert all(sorted(gallery) == list(range(200)) for gallery in galleries)
    assert len({tuple(gallery) for gallery in galleries}) == 3
    assert len(set(corpus.train.groups.tolist())) > 190  # of 200, in 1,000 draws


def test_tokens_begin_and_end_with_the_end_token() -> None:
    corpus = run()
    end = corpus.tokenizer.end_token_id
    for split in splits(corpus):
        assert split.tokens.dtype == split.lengths.dtype == split.image_of.dtype == split.groups.dtype == np.int64
        assert split.tokens.shape == (len(split), corpus.longest)
        assert split.image_of.tolist() == list(range(len(split)))
        for row, length, caption in zip(split.tokens, split.lengths, split.captions, strict=True):
            assert row[0] == end
            assert corpus.tokenizer.decode(row[1:length].tolist()) == caption
            assert (row[length:] == end).all()
    assert corpus.longest == max(split.lengths.max() for split in splits(corpus))


def test_scenes_follow_from_the_settings() -> None:
    first, again = run(), run()
    assert np.array_equal(first.train.images, again.train.images)
    assert first.train.captions == again.train.captions
    assert first.fingerprint == again.fingerprint == run(shift=0).fingerprint
    changes = [{"seed": 1}, {"image_size": 20}, {"train_pairs": 999}, {"test_galleries": 0}, {"test_fraction": 0.21}]
    assert len({run(**change).fingerprint for change in changes} | {first.fingerprint}) == 6
    # More pairs go on where fewer ended.
    assert np.array_equal(run(train_pairs=1100).train.images[:1000], first.train.images)
    assert run(image_size=20).train.images.shape == (1000, 20, 20, 1)
    assert run(test_galleries=0).test is None


def test_a_set_of_ordinary_size_is_made_quickly() -> None:
    run()
    start = time.process_time()  # which does not count what others take of a busy machine
    corpus = run(train_pairs=12_000, image_size=24)
    assert time.process_time() - start < 5  # it is a second
    assert corpus.mean[0] == pytest.approx(corpus.train.images.mean() / 255, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation_fraction": 0.001},
            r"data\.validation_fraction=0\.001: the validation scenes have no picture of a",
        ),
        ({"test_fraction": 0.0}, r"data\.test_fraction=0\.0: the test scenes have no picture of a zero to show; valid"),
        (
            {"validation_fraction": 0.499, "test_fraction": 0.499},
            r"data\.validation_fraction=0\.499, data\.test_fraction=0\.499: ",
        ),
    ],
)
def test_each_split_needs_every_digit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**changes)
