import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flip_a_byte
from make_pictures import pixels, png, write_classes, write_png
from PIL import Image

from natattn.data.images import ImageCorpus, ImageFolderSettings, prepare_images
from natattn.data.images import pixels as stored
from natattn.errors import UserError


def run(train: Path, cache: Path, **changes: Any) -> ImageCorpus:
    fields = {
        "kind": "image_folder",
        "train": str(train),
        "validation": None,
        "test": None,
        "channels": "rgb",
        "image_size": 6,
        "shift": 0,
        "flip": False,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
    }
    return prepare_images(ImageFolderSettings.model_validate(fields | changes), cache=cache, progress=False)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pets" / "train", {"cat": 6, "dog": 4})


def test_each_split_from_its_own_folder(train: Path, cache: Path, tmp_path: Path) -> None:
    (train / "cat" / "deep").mkdir()
    write_png(train / "cat" / "deep" / "20.PNG", 20)
    (train / "cat" / "notes.txt").write_text("no image")
    (train / "cat" / "._0.png").write_text("what a Mac leaves behind")
    (train / ".cache").mkdir()
    validation = write_classes(tmp_path / "validation", {"dog": 2}, first=100)
    corpus = run(train, cache, validation=str(validation))
    assert corpus.name == "pets"
    assert corpus.classes == ("cat", "dog")
    assert (len(corpus.train), len(corpus.validation), corpus.test) == (11, 2, None)
    assert isinstance(corpus.train.images, np.memmap)
    assert corpus.train.labels.tolist() == [0] * 7 + [1] * 4
    assert corpus.validation.labels.tolist() == [1, 1]
    assert np.array_equal(corpus.train.images[:6], [pixels(number) for number in range(6)])
    assert np.array_equal(corpus.train.images[6], pixels(20))
    assert np.array_equal(corpus.validation.images, [pixels(100), pixels(101)])
    values = corpus.train.images / 255
    assert corpus.mean == pytest.approx(tuple(values.mean(axis=(0, 1, 2))), rel=1e-12)
    assert corpus.std == pytest.approx(tuple(values.std(axis=(0, 1, 2))), rel=1e-12)


def test_held_out_pictures_are_taken_from_train_by_content(train: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copy(train / "cat" / "0.png", train / "dog" / "the same.png")
    corpus = run(train, cache)
    assert corpus.test is not None
    parts = [{image.tobytes() for image in split.images} for split in (corpus.train, corpus.validation, corpus.test)]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(train.glob("*/*.png"), reverse=True)):
        (renamed / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, renamed / path.parent.name / f"{number}.png")
    again = run(renamed, cache)
    assert {image.tobytes() for image in again.validation.images} == parts[1]
    test = write_classes(tmp_path / "test", {"cat": 1}, first=50)
    assert len(run(train, cache, test=str(test)).train) == 8 + 1  # only validation is taken from it, two of ten


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("L", [[0, 128, 255]], [0, 128, 255]),
        ("I;16", [[0, 256, 65535]], [0, 1, 255]),
        ("1", [[False, True, True]], [0, 255, 255]),
    ],
)
def test_grey_of_any_depth(train: Path, cache: Path, mode: str, values: Any, expected: list[int]) -> None:
    for path in train.glob("*/*.png"):
        path.unlink()
    types = {"L": np.uint8, "I;16": np.uint16, "1": bool}
    for index, path in enumerate([train / "cat/a.png", train / "cat/b.png", train / "dog/c.png"]):
        image = Image.fromarray(np.repeat(np.array(values, dtype=types[mode]), 3, axis=0))
        assert image.mode == mode
        image.save(path, compress_level=index)  # other bytes for the same pixels
    corpus = run(train, cache, channels="grey", image_size=3, test_fraction=0.0)
    assert corpus.channels == 1
    assert corpus.train.images[0, :, :, 0].tolist() == [expected] * 3


def test_the_middle_square_is_resized_and_turned_as_the_camera_was(train: Path, cache: Path) -> None:
    wide = pixels(0, 8, 20)
    Image.fromarray(wide).save(train / "cat" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(np.rot90(wide)).save(train / "cat" / "1.png", exif=exif)
    validation = write_classes(train.parent / "validation", {"dog": 1}, first=100)
    corpus = run(train, cache, image_size=4, validation=str(validation))
    whole = np.asarray(Image.fromarray(wide).resize((10, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(corpus.train.images[0], whole[:, 3:7])
    assert np.array_equal(corpus.train.images[1], whole[:, 3:7])


def spoil(train: Path, change: str) -> None:
    match change:
        case "text":
            (train / "cat" / "bad.png").write_text("this is no picture")
        case "truncated":
            content = png(1, 64, 64)
            (train / "cat" / "bad.png").write_bytes(content[: len(content) // 2])
        case "empty file":
            (train / "cat" / "bad.jpg").touch()
        case "damaged jpeg":
            Image.fromarray(pixels(0, 64, 64)).save(train / "cat" / "bad.jpg")
            content = (train / "cat" / "bad.jpg").read_bytes()
            (train / "cat" / "bad.jpg").write_bytes(content[:-300])
        case "broken link":
            (train / "cat" / "bad.png").symlink_to(train / "gone.png")
        case "empty class":
            (train / "emu").mkdir()
        case "one class":
            shutil.rmtree(train / "dog")
        case "no image":
            for path in train.glob("*/*.png"):
                path.unlink()
        case "no class":
            for folder in train.iterdir():
                shutil.rmtree(folder)
            write_png(train / "0.png", 0)
        case "no folder":
            shutil.rmtree(train)
        case "few":
            for path in sorted(train.glob("*/*.png"))[1:-1]:
                path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", r"cat/bad\.png: cannot be decoded \(not an image that PIL can read\)"),
        ("truncated", r"cat/bad\.png: cannot be decoded \(.*truncated"),
        ("damaged jpeg", r"cat/bad\.jpg: cannot be decoded \(.*truncated"),
        ("empty file", r"cat/bad\.jpg: cannot be decoded"),
        ("broken link", r"cat/bad\.png: cannot be read \(No such file"),
        ("empty class", r"data\.train=.*train: class emu has no image; add some \(\.png, .* or remove the folder"),
        ("one class", r"data\.train=.*train: only one class \(cat\); at least two"),
        ("no image", r"data\.train=.*train: no image there; images are \.png, \.jpg"),
        ("no class", r"data\.train=.*train: no sub-folder there; each class needs one"),
        ("no folder", r"data\.train=.*train: no such folder"),
        ("few", r"data\.train=.*: 2 distinct images are too few to be split. Give data\.validation"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(train: Path, cache: Path, change: str, message: str) -> None:
    spoil(train, change)
    with pytest.raises(UserError, match=message) as error:
        run(train, cache)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("meta.json")) or "decoded" in message  # of other splits that were whole


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (
            lambda train: write_classes(train.parent / "v", {"emu": 1}),
            r"data\.validation=.*v: class emu is not in data",
        ),
        (lambda train: train, r"data\.validation=.*train: is inside data\.train; held-out"),
        (lambda train: train / "cat", r"data\.validation=.*cat: is inside data\.train; held-out"),
        (lambda train: train.parent / "gone", r"data\.validation=.*gone: no such folder"),
    ],
    ids=["unknown class", "the same", "inside", "missing"],
)
def test_held_out_folders_must_fit(train: Path, cache: Path, validation: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(train, cache, validation=str(validation(train)))


def test_the_second_time_nothing_is_decoded(train: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(train, cache)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(stored, "_decode", fail)
    second = run(train, cache)
    assert second.fingerprint == first.fingerprint
    assert (second.mean, second.std) == (first.mean, first.std)
    assert np.array_equal(second.train.images, first.train.images)


@pytest.mark.parametrize("name", ["pixels.bin", "meta.json"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        flip_a_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(re.sub(rb'("sums": \[\s*)', rb"\g<1>1", path.read_bytes()) + b" "),
    ],
    ids=["missing", "flipped", "emptied", "cut", "changed"],
)
def test_a_damaged_entry_is_made_again(train: Path, cache: Path, name: str, damage: Callable[[Path], None]) -> None:
    first = run(train, cache)
    expected = np.array(first.train.images)
    entries = sorted(cache.glob(f"images/*/{name}"))
    assert len(entries) == 3
    for path in entries:
        damage(path)
    second = run(train, cache)
    assert np.array_equal(second.train.images, expected)
    assert (second.fingerprint, second.mean, second.std) == (first.fingerprint, first.mean, first.std)
    assert len(list(cache.rglob("*.*"))) == 6


def test_the_fingerprint_follows_pixels_and_labels(train: Path, cache: Path, tmp_path: Path) -> None:
    validation = str(write_classes(tmp_path / "validation", {"dog": 2}, first=100))

    def fingerprint(folder: Path = train, **changes: Any) -> str:
        return run(folder, cache, **{"validation": validation} | changes).fingerprint

    seen = [fingerprint(), fingerprint(image_size=5), fingerprint(channels="grey"), fingerprint(validation=None)]
    copy = Path(shutil.copytree(train, tmp_path / "copy"))
    assert fingerprint(copy) == seen[0]
    (copy / "cat").rename(copy / "bird")
    (copy / "bird" / "0.png").rename(copy / "dog" / "0.png")
    with pytest.raises(UserError, match="class cat"):
        fingerprint(copy, validation=str(train))
    seen.append(fingerprint(copy))
    path = train / "cat" / "0.png"
    before = path.stat()
    changed = pixels(0)
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.append(fingerprint())
    assert len(set(seen)) == 6


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    train: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stored._decoded

    def change_meanwhile(*arguments: Any) -> Any:
        write_classes(train, {"cat": 6, "dog": 4}, first=500)
        for path in train.glob("*/*.png"):
            write_png(path, 1000)
        return original(*arguments)

    monkeypatch.setattr(stored, "_decoded", change_meanwhile)
    with pytest.raises(UserError, match=r"\.png: changed while it was being read. Start again"):
        run(train, cache)
    assert not list(cache.rglob("*.*"))


def test_a_constant_channel_has_a_deviation_to_divide_by(train: Path, cache: Path) -> None:
    for index, path in enumerate(sorted(train.glob("*/*.png"))):
        image = pixels(index)
        image[..., 2] = 7
        Image.fromarray(image).save(path)
    corpus = run(train, cache)
    assert corpus.std[2] == 1.0
    assert corpus.mean[2] == pytest.approx(7 / 255)


def test_the_home_of_nobody_here_is_refused(cache: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train=~nobody-here/pets: no such user"):
        run(Path("~nobody-here/pets"), cache)
