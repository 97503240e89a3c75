import ast
import sysconfig
from pathlib import Path

import pytest

from natattn.data.text.stdlib import StdlibCorpus, StdlibSettings
from natattn.errors import UserError

SETTINGS = StdlibSettings(kind="stdlib", validation_fraction=0.03, test_fraction=0.03)
HALVES = StdlibSettings(kind="stdlib", validation_fraction=0.3, test_fraction=0.3)


def write_library(root: Path) -> None:
    for i in range(30):
        (root / "package").mkdir(parents=True, exist_ok=True)
        (root / "package" / f"module_{i}.py").write_text(f"number = {i}\n")


def names(corpus: StdlibCorpus) -> dict[str, list[str]]:
    return {split: [name for name, _ in corpus._files[split]] for split in corpus.splits}


def all_names(corpus: StdlibCorpus) -> list[str]:
    return [name for found in names(corpus).values() for name in found]


def test_the_running_python_has_real_text_in_three_splits() -> None:
    corpus = StdlibCorpus(SETTINGS)
    assert corpus.splits == ("train", "validation", "test")
    sizes = {split: corpus.size(split) for split in corpus.splits}
    assert sizes["train"] > 5_000_000
    assert 50_000 < sizes["validation"] < 1_000_000
    assert 50_000 < sizes["test"] < 1_000_000
    assert "argparse.py" in all_names(corpus)
    ast.parse("".join("".join(document) for document in list(corpus.documents("validation"))[:1]))


def test_tests_packages_tables_and_duplicates_are_left_out() -> None:
    corpus = StdlibCorpus(SETTINGS)
    found = all_names(corpus)
    assert len(found) == len(set(found))
    folders = {part for name in found for part in Path(name).parts[:-1]}
    assert folders.isdisjoint(
        {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    )
    assert not [name for name in found if "_sysconfigdata" in name]
    contents = [text for split in corpus.splits for _, text in corpus._files[split]]
    assert len(contents) == len(set(contents))


def test_no_path_of_this_machine_is_in_the_text() -> None:
    corpus = StdlibCorpus(SETTINGS)
    prefix = sysconfig.get_config_var("prefix").encode()
    if prefix in (b"/usr", b"/usr/local"):  # these are written in the library's documentation
        pytest.skip("the prefix is a common word")
    assert not [name for split in corpus.splits for name, text in corpus._files[split] if prefix in text]


def test_splits_are_drawn_by_relative_path(tmp_path: Path) -> None:
    write_library(tmp_path / "one")
    write_library(tmp_path / "other")
    one, other = StdlibCorpus(HALVES, tmp_path / "one"), StdlibCorpus(HALVES, tmp_path / "other")
    assert names(one) == names(other)
    assert [one.digest(split) for split in one.splits] == [other.digest(split) for split in one.splits]
    assert all(list(files) == sorted(files) for files in names(one).values())
    # A new file moves no other.
    before = names(one)
    (tmp_path / "other" / "aaa.py").write_text("new = True\n")
    after = names(StdlibCorpus(HALVES, tmp_path / "other"))
    assert {split: [name for name in files if name != "aaa.py"] for split, files in after.items()} == before


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    write_library(tmp_path)
    before = StdlibCorpus(HALVES, tmp_path)
    digests = {split: before.digest(split) for split in before.splits}
    changed = names(before)["validation"][0]
    (tmp_path / changed).write_text("number = -1\n")
    after = StdlibCorpus(HALVES, tmp_path)
    assert {split for split in after.splits if after.digest(split) != digests[split]} == {"validation"}


def test_what_is_no_text_is_left_out(tmp_path: Path) -> None:
    write_library(tmp_path)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "copy.py").write_bytes((tmp_path / "package" / "module_3.py").read_bytes())
    found = all_names(StdlibCorpus(HALVES, tmp_path))
    assert len(found) == 30
    assert not {"empty.py", "latin.py", "package/module_3.py"} & set(found)  # copy.py comes first in the order


def test_without_a_test_fraction_there_is_no_test_split(tmp_path: Path) -> None:
    write_library(tmp_path)
    corpus = StdlibCorpus(HALVES.model_copy(update={"test_fraction": 0}), tmp_path)
    assert corpus.splits == ("train", "validation")
    assert sum(map(len, names(corpus).values())) == 30


def test_a_python_without_source_is_an_error_that_names_the_alternatives(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "module.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"data=stdlib found too few \.py files .*data=text data\.train=FILE"):
        StdlibCorpus(HALVES, tmp_path).size("train")
