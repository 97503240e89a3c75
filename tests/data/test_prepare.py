import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from damage import flip_a_byte
from pydantic import TypeAdapter

from natattn.data import (
    DataSettings,
    TokenizedCorpus,
    TokenizerSettings,
    TokenSplit,
    bigram_entropy,
    prepare,
    unigram_entropy,
)
from natattn.data.progress import Progress
from natattn.data.text import tokenized
from natattn.data.text.tokenizers import END_TOKEN, LibraryTokenizer
from natattn.errors import UserError

ROOT = Path(__file__).parents[2]
BYTE = {"kind": "byte"}
BPE = {"kind": "bpe", "vocab_size": 300}
GRAMMAR = {
    "kind": "grammar",
    "seed": 0,
    "depth": 3,
    "phrases": 4,
    "rules": 3,
    "words": 12,
    "children": 2,
    "recursion": 0.05,
    "train_tokens": 20_000,
    "validation_tokens": 20_000,
    "test_tokens": 0,
}


def write_lines(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def text_settings(train: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "kind": "text",
        "train": str(train),
        "validation": None,
        "test": None,
        "field": "text",
        "errors": "strict",
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
    }
    return fields | changes


def run(data: dict[str, Any], tokenizer: dict[str, Any], cache: Path) -> TokenizedCorpus:
    return prepare(
        TypeAdapter(DataSettings).validate_python(data),
        TypeAdapter(TokenizerSettings).validate_python(tokenizer),
        cache=cache,
        progress=False,
    )


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "lines.jsonl", [f"document number {i}, wörter" for i in range(100)])


def entry_of(cache: Path, corpus: TokenizedCorpus) -> Path:
    return cache / "tokens" / corpus.fingerprint


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any tokenizing or training from now on is a failure."""

    def fail(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(tokenized, "_write_tokens", fail)
    monkeypatch.setattr(tokenized, "train_bpe", fail)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE])
def test_tokens_are_the_documents_with_the_end_token_after_each(
    lines: Path, cache: Path, tokenizer: dict[str, Any]
) -> None:
    corpus = run(text_settings(lines), tokenizer, cache)
    assert corpus.test is not None
    documents = []
    for split, count in ((corpus.train, 80), (corpus.validation, 10), (corpus.test, 10)):
        assert isinstance(split.tokens, np.memmap)
        assert split.tokens[-1] == corpus.tokenizer.end_token_id
        text = corpus.tokenizer.decode(split.tokens.tolist())
        assert split.document_count == count == text.count(END_TOKEN)
        assert split.byte_count == len(text.replace(END_TOKEN, "").encode())
        documents += text.split(END_TOKEN)[:-1]
    assert sorted(documents) == sorted(f"document number {i}, wörter" for i in range(100))
    assert corpus.name == "lines.jsonl"
    assert corpus.floor is None


def test_bpe_sees_only_the_train_split(tmp_path: Path, cache: Path) -> None:
    train = tmp_path / "train.txt"
    train.write_text("abab cdcd " * 50)
    vocabularies = []
    for held_out in ("xyxy zzzz " * 50, "other text"):
        (tmp_path / "validation.txt").write_text(held_out)
        corpus = run(text_settings(train, validation=str(tmp_path / "validation.txt")), BPE, cache)
        vocabularies.append([corpus.tokenizer.decode([i]) for i in range(corpus.tokenizer.vocab_size)])
    assert vocabularies[0] == vocabularies[1]
    assert "abab" in vocabularies[0]
    assert "xyxy" not in vocabularies[0]
    assert len(list((cache / "tokenizers").iterdir())) == 1  # trained once for both


@pytest.mark.parametrize("tokenizer", [BYTE, BPE])
def test_the_second_time_nothing_is_made_again(
    lines: Path, cache: Path, tokenizer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(text_settings(lines), tokenizer, cache)
    forbid_work(monkeypatch)
    second = run(text_settings(lines), tokenizer, cache)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.train.tokens, first.train.tokens)
    assert second.tokenizer.encode("document 7") == first.tokenizer.encode("document 7")


def test_the_fingerprint_follows_content_rule_and_tokenizer(lines: Path, cache: Path) -> None:
    def fingerprint(tokenizer: dict[str, Any] = BYTE, **changes: Any) -> str:
        return run(text_settings(lines, **changes), tokenizer, cache).fingerprint

    seen = [fingerprint(), fingerprint(BPE), fingerprint(BPE | {"vocab_size": 301})]
    seen += [fingerprint(validation_fraction=0.2), fingerprint(test_fraction=0.0)]
    before = lines.stat()
    write_lines(lines, [f"document number {i}, wärter" for i in range(100)])
    os.utime(lines, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time, another text
    assert lines.stat().st_size == before.st_size
    seen.append(fingerprint())
    assert len(set(seen)) == 6


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "meta.json"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        flip_a_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    ],
    ids=["missing", "flipped", "emptied", "cut", "longer"],
)
def test_a_damaged_entry_is_made_again(lines: Path, cache: Path, name: str, damage: Any) -> None:
    first = run(text_settings(lines), BYTE, cache)
    expected = np.array(first.train.tokens), np.array(first.validation.tokens)
    damage(entry_of(cache, first) / name)
    second = run(text_settings(lines), BYTE, cache)
    assert np.array_equal(second.train.tokens, expected[0])
    assert np.array_equal(second.validation.tokens, expected[1])
    assert sorted(os.listdir(entry_of(cache, first))) == ["meta.json", "test.bin", "train.bin", "validation.bin"]


def test_a_damaged_tokenizer_is_trained_again(lines: Path, cache: Path) -> None:
    first = run(text_settings(lines), BPE, cache)
    (file,) = cache.glob("tokenizers/*/tokenizer.json")
    file.write_text(file.read_text()[:100])
    assert run(text_settings(lines), BPE, cache).tokenizer.encode("number") == first.tokenizer.encode("number")


def test_an_interrupted_run_leaves_no_entry(lines: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(tokenized, "_BATCH_CHARACTERS", 100)
        calls = iter(range(3))

        def interrupt(self: LibraryTokenizer, texts: list[str]) -> list[np.ndarray]:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return [np.zeros(1, dtype=np.uint32) for _ in texts]

        patched.setattr("natattn.data.text.tokenizers.ByteTokenizer.encode_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(text_settings(lines), BYTE, cache)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert run(text_settings(lines), BYTE, cache).train.document_count == 80


def test_text_that_changes_while_it_is_read_is_not_kept(
    lines: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tokenized._write_tokens

    def change_meanwhile(*arguments: Any) -> dict[str, Any]:
        write_lines(lines, [f"another text {i}" for i in range(100)])
        return original(*arguments)

    monkeypatch.setattr(tokenized, "_write_tokens", change_meanwhile)
    with pytest.raises(UserError, match="changed while it was being read"):
        run(text_settings(lines), BYTE, cache)
    assert not list(cache.rglob("meta.json"))


def test_two_processes_at_once_both_succeed(lines: Path, cache: Path) -> None:
    script = (
        "import sys, json; from pathlib import Path; from pydantic import TypeAdapter\n"
        "from natattn.data import DataSettings, TokenizerSettings, prepare\n"
        "data, tokenizer = map(json.loads, sys.argv[2:4])\n"
        "corpus = prepare(TypeAdapter(DataSettings).validate_python(data),\n"
        "                 TypeAdapter(TokenizerSettings).validate_python(tokenizer), cache=Path(sys.argv[1]))\n"
        "print(corpus.fingerprint, int(corpus.train.tokens.sum()))\n"
    )
    arguments = [sys.executable, "-c", script, str(cache), json.dumps(text_settings(lines)), json.dumps(BPE)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    corpus = run(text_settings(lines), BPE, cache)
    assert set(outputs) == {f"{corpus.fingerprint} {int(corpus.train.tokens.sum())}\n"}
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize(("words", "dtype"), [(65_000, "uint16"), (66_000, "uint32")])
def test_the_width_follows_the_vocabulary(lines: Path, cache: Path, tmp_path: Path, words: int, dtype: str) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)} | {"<unk>": words}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens([AddedToken(END_TOKEN, special=True)])
    LibraryTokenizer(library).save(tmp_path / "words")
    text = write_lines(tmp_path / "numbers.jsonl", [f"w{i} w{words - 1}" for i in range(10)])
    data = text_settings(text, validation=str(lines))
    corpus = run(data, {"kind": "hf", "path": str(tmp_path / "words")}, cache)
    assert corpus.train.tokens.dtype == np.dtype(dtype)
    assert corpus.tokenizer.vocab_size == words + 2
    assert corpus.train.tokens[:6].tolist() == [0, words - 1, words + 1, 1, words - 1, words + 1]


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, cache: Path, kind: str) -> None:
    line = "a line of text with some words in it " * 60
    path = tmp_path / f"big.{kind}"
    with open(path, "w") as file:
        for number in range(9_300):
            file.write(f'{{"text": "{number} {line}"}}\n' if kind == "jsonl" else f"{number} {line}\n")
    size = path.stat().st_size
    assert size > 20e6
    tracemalloc.start()
    try:
        corpus = run(text_settings(path), BYTE, cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corpus.train.byte_count > 0.7 * size
    assert peak < size / 2


def test_bpe_tokenizes_in_bounded_memory(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_text("\n".join(f"the {i} quick brown fox {i * i}" for i in range(100_000)))
    small = tmp_path / "small.txt"
    small.write_text("the quick brown fox")
    size = path.stat().st_size
    assert size > 3e6
    tracemalloc.start()
    try:
        corpus = run(text_settings(path, validation=str(small)), BPE, cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tokens = len(corpus.train.tokens)
    assert tokens * 28 > 4 * peak  # a list of Python integers would be 28 bytes a token


def test_a_split_without_text_is_refused(tmp_path: Path, cache: Path, lines: Path) -> None:
    blank = write_lines(tmp_path / "blank.jsonl", ["", ""])
    with pytest.raises(UserError, match="the validation split holds no text"):
        run(text_settings(lines, validation=str(blank)), BYTE, cache)


def word_count(split: TokenSplit, width: int) -> int:
    return (split.byte_count + split.document_count) // (width + 1)


@pytest.mark.parametrize("tokenizer", [BPE, BYTE])
def test_the_grammar_floor_is_in_nats_per_token(cache: Path, tokenizer: dict[str, Any]) -> None:
    from natattn.data.text.grammar import GrammarSettings, build_grammar

    grammar = build_grammar(GrammarSettings.model_validate(GRAMMAR))
    corpus = run(GRAMMAR, tokenizer, cache)
    assert corpus.floor is not None
    assert corpus.test is None
    tokens = corpus.validation.tokens
    if tokenizer is BPE:  # each word is one token here
        assert len(tokens) == word_count(corpus.validation, 2) + corpus.validation.document_count
        assert corpus.floor == pytest.approx(grammar.token_entropy, rel=1e-12)
    else:
        # Two letters and a space a word, the space of the last word being the end.
        assert corpus.floor == pytest.approx(grammar.sentence_entropy / (3 * grammar.sentence_length), rel=0.01)
    # No model of the text is below its source's entropy.
    assert corpus.floor < bigram_entropy(tokens, corpus.tokenizer.vocab_size)
    assert corpus.floor < unigram_entropy(tokens, corpus.tokenizer.vocab_size)


def test_the_default_corpus_is_large_and_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = yaml.safe_load((ROOT / "conf/data/stdlib.yaml").read_text())
    tokenizer = yaml.safe_load((ROOT / "conf/tokenizer/bpe.yaml").read_text())
    first = run(data, tokenizer, cache)
    forbid_work(monkeypatch)
    assert run(data, tokenizer, cache).fingerprint == first.fingerprint
    assert first.tokenizer.vocab_size == 4096
    assert len(first.train.tokens) > 1_000_000
    assert first.train.tokens.dtype == np.uint16


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, True), (True, False), (False, True)])
def test_a_bar_counts_bytes_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shown: bool):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("tokenizing", 12, shown) as bar:
        bar.advance(5)
        assert list(bar.watch(iter(["añb", "abc"]))) == ["añb", "abc"]
        done = bar._bar and bar._bar.tasks[0].completed
    if is_terminal and shown:
        assert done == 12  # ñ is two bytes
        assert "tokenizing" in stream.getvalue()
        assert "12/12 bytes" in stream.getvalue()
    else:
        assert stream.getvalue() == ""
