import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_pictures import pixels, png, write_lines, write_png

from natattn.data import TokenizerSettings
from natattn.data.images import CaptionFilesSettings, PairCorpus, prepare_pairs
from natattn.data.images import pixels as stored
from natattn.data.text import tokenized
from natattn.data.text.tokenizers import BPESettings, ByteSettings
from natattn.errors import UserError

BYTE = ByteSettings(kind="byte")
BPE = BPESettings(kind="bpe", vocab_size=280)


def run(train: Path, cache: Path, tokenizer: TokenizerSettings = BYTE, **changes: Any) -> PairCorpus:
    fields = {
        "kind": "caption_files",
        "train": str(train),
        "validation": None,
        "test": None,
        "errors": "strict",
        "channels": "rgb",
        "image_size": 6,
        "shift": 0,
        "flip": False,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
    }
    settings = CaptionFilesSettings.model_validate(fields | changes)
    return prepare_pairs(settings, tokenizer, cache=cache, progress=False)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Ten pictures, the first of them in two files, with a caption of their number or several."""
    for number in range(10):
        write_png(tmp_path / "pictures" / f"{number}.png", number)
    write_png(tmp_path / "copy.png", 0)
    entries: list[dict[str, Any]] = [
        {"image": f"pictures/{number}.png", "caption": f"picture {number}"} for number in range(9)
    ]
    entries += [{"image": "pictures/9.png", "caption": ["picture 9", " ninth picture\n"]}]
    entries += [{"image": "copy.png", "caption": "picture 0, again"}]
    return write_lines(tmp_path / "train.jsonl", entries)


def make_folder(folder: Path, captions: str, count: int = 12) -> Path:
    for number in range(count):
        write_png(folder / "images" / f"{number}.png", number)
    (folder / "captions.txt").write_text(captions, encoding="utf-8")
    return folder


def numbers_of(split: Any) -> list[tuple[int, str]]:
    """(number of the picture, caption) of each pair."""
    number = {pixels(number).tobytes(): number for number in range(300)}
    return [
        (number[split.images[image].tobytes()], caption)
        for image, caption in zip(split.image_of, split.captions, strict=True)
    ]


def test_lines_of_json(train: Path, cache: Path, tmp_path: Path) -> None:
    validation = write_lines(
        tmp_path / "other" / "validation.jsonl",
        [{"image": str(write_png(tmp_path / f"{number}.png", number)), "caption": "é"} for number in (20, 21)],
    )
    corpus = run(train, cache, validation=str(validation))
    assert corpus.name == "train.jsonl"
    assert corpus.gallery is None
    assert corpus.test is None
    assert isinstance(corpus.train.images, np.memmap)
    assert len(corpus.train.images) == 10
    assert len(corpus.train) == 12
    assert numbers_of(corpus.train) == [
        *((number, f"picture {number}") for number in range(10)),
        (9, "ninth picture"),
        (0, "picture 0, again"),
    ]
    assert corpus.train.groups.tolist() == corpus.train.image_of.tolist() == [*range(10), 9, 0]
    assert numbers_of(corpus.validation) == [(20, "é"), (21, "é")]
    assert corpus.validation.lengths.tolist() == [3, 3]
    assert corpus.validation.tokens[0].tolist() == [256, 0xC3, 0xA9] + [256] * (corpus.longest - 3)
    assert corpus.longest == 1 + len("picture 0, again")


def test_a_folder_of_images_and_a_line_for_each(tmp_path: Path, cache: Path) -> None:
    folder = make_folder(tmp_path / "set", "".join(f"picture {number}\r\n" for number in range(12)) + "\n\n")
    corpus = run(folder, cache, test_fraction=0.0)
    assert corpus.name == "set"
    pairs = numbers_of(corpus.train) + numbers_of(corpus.validation)
    assert sorted(pairs) == [(number, f"picture {number}") for number in range(12)]
    assert [len(corpus.train), len(corpus.validation)] == [9, 3]


def test_held_out_pairs_follow_their_pictures(train: Path, cache: Path) -> None:
    corpus = run(train, cache)
    assert corpus.test is not None
    parts = [numbers_of(split) for split in (corpus.train, corpus.validation, corpus.test)]
    assert sum(map(len, parts)) == 12
    assert [len({number for number, _ in part}) for part in parts] == [6, 2, 2]
    assert len({number for part in parts for number, _ in part}) == 10
    for split in (corpus.train, corpus.validation, corpus.test):
        assert split.tokens.shape[1] == corpus.longest


def lines(*changed: Any, good: int = 2) -> Callable[[Path], Path]:
    """A file of good lines and then these; a string is a line as it is."""

    def write(folder: Path) -> Path:
        first = [{"image": str(write_png(folder / f"{number}.png", number)), "caption": "x"} for number in range(good)]
        path = folder / "bad.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in (*first, *changed)]
        path.write_text("\n".join(texts))
        return path

    return write


def spoiled(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "bad.png").write_bytes(content)
        return lines({"image": "bad.png", "caption": "x"}, good=9)(folder)

    return write


def missing_part(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = make_folder(folder / "set", "x\n" * 12)
        (made / name).rename(folder / "elsewhere")
        return made

    return write


def empty_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "captions.txt").write_text("x")
    return folder


def a_table(folder: Path) -> Path:
    (folder / "table.csv").write_text("a,b")
    return folder / "table.csv"


def nothing(folder: Path) -> Path:
    (folder / "empty.jsonl").touch()
    return folder / "empty.jsonl"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lines({"caption": "x"}), r"bad\.jsonl:3: no key 'image'; the line has: caption"),
        (lines({"image": "0.png", "text": "x"}), r"bad\.jsonl:3: no key 'caption'; the line has: image, text"),
        (lines({"image": 3, "caption": "x"}), r"bad\.jsonl:3: image is int, not a path"),
        (lines({"image": "gone.png", "caption": "x"}), r"bad\.jsonl:3: no such image .*gone\.png"),
        (lines({"image": "0.png", "caption": " \n"}), r"bad\.jsonl:3: the caption is empty"),
        (lines({"image": "0.png", "caption": []}), r"bad\.jsonl:3: an empty list of captions"),
        (lines({"image": "0.png", "caption": 5}), r"bad\.jsonl:3: the caption is int, not text"),
        (lines({"image": "0.png", "caption": None}), r"bad\.jsonl:3: the caption is NoneType, not text"),
        (lines({"image": "0.png", "caption": ["x", {}]}), r"bad\.jsonl:3: the caption is dict, not text"),
        (lines({"image": "0.png", "caption": "\ud800"}), r"bad\.jsonl:3: the caption contains half a surrogate"),
        (lines("[1]"), r"bad\.jsonl:3: a JSON list, not an object with the keys 'image' and 'caption'"),
        (lines("{"), r"bad\.jsonl:3: not a line of JSON"),
        (spoiled(b"no picture"), r"bad\.png: cannot be decoded \(not an image"),
        (spoiled(png(5, 64, 64)[:5000]), r"bad\.png: cannot be decoded \(.*truncated"),
        (lambda folder: make_folder(folder, "x\n" * 11), r"data\.train=.*: 12 images, but 11 captions"),
        (lambda folder: make_folder(folder, "x\n" * 13), r"data\.train=.*: 12 images, but 13 captions"),
        (lambda folder: make_folder(folder, "x\n" * 5 + "\n" + "x\n" * 6), r"captions\.txt:6: the caption is empty"),
        (missing_part("images"), r"data\.train=.*: no images/ in it. Use a \.jsonl file of"),
        (missing_part("captions.txt"), r"data\.train=.*: no captions\.txt in it. Use a \.jsonl file of"),
        (empty_images, r"data\.train=.*: no image in images/; images are \.png"),
        (a_table, r"data\.train=.*table\.csv: unknown format. Use a \.jsonl"),
        (nothing, r"data\.train=.*empty\.jsonl: the file has no lines"),
        (lambda folder: folder / "gone", r"data\.train=.*gone: no such file or folder"),
        (lines(), r"data\.train=.*bad\.jsonl: 2 distinct images are too few to be split"),
    ],
)
def test_what_is_wrong_with_captions_is_said(
    tmp_path: Path, cache: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(make(tmp_path), cache)
    assert "\n" not in str(error.value)


def test_held_out_files_must_be_others_and_have_several_images(train: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation=.*train\.jsonl: is also data\.train"):
        run(train, cache, validation=str(train))
    one = write_lines(tmp_path / "one.jsonl", [{"image": "copy.png", "caption": ["x", "y"]}])
    with pytest.raises(UserError, match=r"the validation split has only one image"):
        run(train, cache, validation=str(one))


def test_a_bpe_learns_the_train_captions_and_is_kept(train: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(train, cache, BPE)
    tokens = first.train.tokens[0, 1 : first.train.lengths[0]].tolist()
    assert first.tokenizer.decode(tokens) == first.train.captions[0]
    assert len(tokens) < len(first.train.captions[0])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(tokenized, "train_bpe", fail)
    monkeypatch.setattr(stored, "_decode", fail)
    second = run(train, cache, BPE)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.train.tokens, first.train.tokens)
    assert np.array_equal(second.train.images, first.train.images)


def test_the_fingerprint_follows_pictures_captions_and_tokenizer(train: Path, cache: Path) -> None:
    seen = [
        run(train, cache).fingerprint,
        run(train, cache, BPE).fingerprint,
        run(train, cache, image_size=5).fingerprint,
    ]
    text = train.read_text()
    train.write_text(text.replace("picture 3", "picture three"))
    seen.append(run(train, cache).fingerprint)
    train.write_text(text)
    assert run(train, cache).fingerprint == seen[0]
    write_png(train.parent / "pictures" / "3.png", 200)
    seen.append(run(train, cache).fingerprint)
    assert len(set(seen)) == 5
