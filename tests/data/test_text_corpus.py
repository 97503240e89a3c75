import gzip
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from natattn.data.text.splits import SplitName
from natattn.data.text.text import TextCorpus, TextSettings, find_files
from natattn.errors import UserError


def make_corpus(train: object, **changes: object) -> TextCorpus:
    fields = {
        "kind": "text",
        "train": train,
        "validation": None,
        "test": None,
        "field": "text",
        "errors": "strict",
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
    }
    return TextCorpus(TextSettings.model_validate(fields | changes))


def texts(corpus: TextCorpus, split: SplitName) -> list[str]:
    return ["".join(document) for document in corpus.documents(split)]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def write_lines(path: Path, documents: Iterable[str]) -> str:
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in documents))


def test_each_split_from_its_own_file(tmp_path: Path) -> None:
    corpus = make_corpus(
        write(tmp_path / "a.txt", "train text"),
        validation=write_lines(tmp_path / "b.jsonl", ["one", "two", ""]),
        test=write(tmp_path / "c.txt", "test text"),
    )
    assert corpus.name == "a.txt"
    assert corpus.splits == ("train", "validation", "test")
    assert texts(corpus, "train") == ["train text"]
    assert texts(corpus, "validation") == ["one", "two"]  # an empty document is none
    assert texts(corpus, "test") == ["test text"]


def test_with_validation_given_nothing_is_taken_from_train(tmp_path: Path) -> None:
    corpus = make_corpus(write(tmp_path / "a.txt", "all of it"), validation=write(tmp_path / "b.txt", "b"))
    assert corpus.splits == ("train", "validation")
    assert texts(corpus, "train") == ["all of it"]


def test_with_only_test_given_validation_is_taken_from_train(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "a.jsonl", [f"document {i}" for i in range(50)])
    corpus = make_corpus(train, test=write(tmp_path / "c.txt", "test text"))
    assert corpus.splits == ("train", "validation", "test")
    assert [len(texts(corpus, split)) for split in corpus.splits] == [45, 5, 1]


def test_folders_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/deep/x.txt", "c.txt", "notes.md", "empty.txt"):
        write(tmp_path / name, "" if name == "empty.txt" else name)

    def names(value: str | tuple[str, ...]) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in find_files(value, "data.train")]

    assert names(str(tmp_path)) == ["a/deep/x.txt", "b/1.txt", "b/2.txt", "c.txt"]
    assert names(str(tmp_path / "b" / "*.txt")) == ["b/1.txt", "b/2.txt"]
    assert names(str(tmp_path / "**" / "x.txt")) == ["a/deep/x.txt"]
    assert names((str(tmp_path / "c.txt"), str(tmp_path / "b"), str(tmp_path / "c.txt"))) == [
        "c.txt",
        "b/1.txt",
        "b/2.txt",
    ]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "text")
    assert find_files(path, "data.train") == [Path(path)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", r"data\.train=.*missing\.txt: no such file or folder"),
        ("empty.txt", r"data\.train=.*empty\.txt: the file is empty"),
        ("table.csv", r"data\.train=.*table\.csv: unknown extension. Use \.txt, \.jsonl, \.parquet"),
        ("folder", r"data\.train=.*folder: no file with text in it"),
        ("*.jsonl", r"data\.train=.*\*\.jsonl: no file with text in it"),
    ],
)
def test_what_cannot_be_text_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "table.csv", "a,b")
    write(tmp_path / "folder" / "readme.md", "text")
    with pytest.raises(UserError, match=message):
        make_corpus(str(tmp_path / name))


@pytest.mark.parametrize(("train", "message"), [("???", "data.train must be given"), ((), "data.train: an empty list")])
def test_train_must_be_given(train: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_corpus(train)


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    (tmp_path / "link.txt").symlink_to(path)
    for other in (path, str(tmp_path), str(tmp_path / "link.txt")):
        with pytest.raises(UserError, match=r"data\.validation: .* is also in data\.train"):
            make_corpus(path, validation=other)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_one_text_file_is_split_at_blank_lines_with_held_out_text_at_its_end(tmp_path: Path, name: str) -> None:
    text = "".join(f"Paragraph {i}.\nIt has two lines.\n \n" for i in range(500))
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    corpus = make_corpus(str(tmp_path / name))
    parts = [texts(corpus, split) for split in corpus.splits]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0] for part in parts) == text
    for (part,), share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert part.startswith("Paragraph")
        assert len(part) == pytest.approx(share * len(text), rel=0.02)


@pytest.mark.parametrize("text", ["line of text\n" * 200, "ein Wört " * 300, "日本語" * 300])
def test_text_without_blank_lines_is_split_between_lines_or_characters(tmp_path: Path, text: str) -> None:
    corpus = make_corpus(write(tmp_path / "a.txt", text))
    parts = [texts(corpus, split)[0] for split in corpus.splits]
    assert "".join(parts) == text
    assert min(map(len, parts)) > 0.04 * len(text)
    if "\n" in text:
        assert all(part.endswith("\n") for part in parts)


def test_a_blank_line_far_away_does_not_move_the_cut(tmp_path: Path) -> None:
    text = "a line\n" * 1000 + "\nlast\n"
    corpus = make_corpus(write(tmp_path / "a.txt", text))
    assert len(texts(corpus, "validation")[0]) == pytest.approx(700, abs=20)


def test_documents_are_drawn_by_content_whatever_their_order(tmp_path: Path) -> None:
    documents = [f"document number {i}" for i in range(200)]
    one = make_corpus(write_lines(tmp_path / "one.jsonl", documents))
    other = make_corpus(write_lines(tmp_path / "other.jsonl", documents[::-1]))
    parts = [texts(one, split) for split in one.splits]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert sorted(itertools.chain(*parts)) == sorted(documents)
    for split in one.splits:
        assert texts(other, split) == texts(one, split)[::-1]


def test_equal_documents_stay_in_one_split(tmp_path: Path) -> None:
    documents = [f"document number {i % 40}" for i in range(200)]
    corpus = make_corpus(write_lines(tmp_path / "a.jsonl", documents))
    parts = [set(texts(corpus, split)) for split in corpus.splits]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert len(set.union(*parts)) == 40


def test_files_of_a_folder_are_documents_to_draw_from(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i:02d}.txt", f"file {i}")
    corpus = make_corpus(str(tmp_path))
    parts = [texts(corpus, split) for split in corpus.splits]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert sorted(itertools.chain(*parts)) == sorted(f"file {i}" for i in range(20))


def test_too_few_documents_to_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 distinct documents are too few"):
        texts(make_corpus(write_lines(tmp_path / "a.jsonl", ["one", "two", "two"])), "train")
    with pytest.raises(UserError, match=r"data\.train=.*a\.txt: 1 bytes are too few"):
        texts(make_corpus(write(tmp_path / "a.txt", "x")), "train")


def test_the_digest_follows_content_and_rule_and_not_names(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = make_corpus(write_lines(path, ["one", "two", "six"])).digest("train")
    assert make_corpus(write_lines(tmp_path / "b.jsonl", ["one", "two", "six"])).digest("train") == first
    assert make_corpus(str(path), validation_fraction=0.2).digest("train") != first
    assert make_corpus(str(path), field="body").digest("train") != first
    assert make_corpus(str(path)).digest("validation") != first
    write_lines(path, ["one", "two", "ten"])  # the same size, and perhaps the same second
    assert make_corpus(str(path)).digest("train") != first


def test_sizes_are_known_for_plain_files(tmp_path: Path) -> None:
    corpus = make_corpus(write(tmp_path / "a.txt", "x" * 1000), validation=write(tmp_path / "b.txt", "y" * 10))
    assert (corpus.size("train"), corpus.size("validation")) == (1000, 10)
    held_out = make_corpus(str(tmp_path / "a.txt"))
    assert [held_out.size(split) for split in held_out.splits] == [800, 100, 100]
