from pathlib import Path

import numpy as np
import pytest

from natattn.data import hub
from natattn.data.text.tokenizers import (
    END_TOKEN,
    BPESettings,
    ByteTokenizer,
    HFSettings,
    LibraryTokenizer,
    Tokenizer,
    load_bpe,
    load_pretrained,
    train_bpe,
)
from natattn.errors import UserError

TEXT = "def hello(wörld):\n\treturn '日本 𝔘' + \"\x00 end\"\r\n\n   # done <|endoftext|> not yet."
CORPUS = ["def hello(name):\n    return name + name\n", "the quick brown fox " * 20, "日本語 wörter\n"] * 10


def make_bpe(vocab_size: int = 300) -> LibraryTokenizer:
    return train_bpe(BPESettings(kind="bpe", vocab_size=vocab_size), iter(CORPUS))


@pytest.fixture(params=["byte", "bpe", "hf"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    if request.param == "bpe":
        return make_bpe()
    make_bpe().save(tmp_path / "pretrained")
    return load_pretrained(HFSettings(kind="hf", path=str(tmp_path / "pretrained")))


def test_text_survives(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert 0 <= min(ids) <= max(ids) < tokenizer.vocab_size


def test_text_that_spells_the_end_token_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_token_id not in tokenizer.encode(TEXT)
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_token_id]) == "a" + END_TOKEN


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [TEXT, "", "short", TEXT[::-1]]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert isinstance(ids, np.ndarray)
        assert ids.tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("with_model", [False, True])
def test_auto_tokenizer_loads_what_was_saved(tokenizer: Tokenizer, tmp_path: Path, with_model: bool) -> None:
    from transformers import AutoTokenizer, GPT2Config

    folder = tmp_path / "saved"
    tokenizer.save(folder)
    if with_model:  # as in a run's export: transformers looks at the model's type too
        end = tokenizer.end_token_id
        GPT2Config(vocab_size=tokenizer.vocab_size, bos_token_id=end, eos_token_id=end).save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    text = TEXT.replace(END_TOKEN, "")
    assert loaded(text)["input_ids"] == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(text)) == text
    assert loaded.eos_token_id == tokenizer.end_token_id
    assert len(loaded) == tokenizer.vocab_size


def test_bytes_are_their_own_tokens() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3]) == "\ufffd"  # half a character


def test_bpe_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_bpe().save(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_bpe_has_the_size_asked_for_or_what_the_text_gives() -> None:
    assert make_bpe(300).vocab_size == 300
    assert make_bpe(257).encode("ab the") == make_bpe(257).encode("ab") + make_bpe(257).encode(" the")
    assert 257 < make_bpe(50_000).vocab_size < 1000


def test_bpe_tokens_of_pieces_are_those_of_the_whole() -> None:
    from natattn.data.text.readers import cut_pieces

    tokenizer = make_bpe()
    text = "the quick brown fox\n  jumps over\n\nthe lazy dogs' 12 tails, " * 4000
    pieces = list(cut_pieces(text))
    assert len(pieces) > 2
    assert np.concatenate(tokenizer.encode_batch(pieces)).tolist() == tokenizer.encode(text)


def test_a_missing_or_broken_bpe_is_none(tmp_path: Path) -> None:
    assert load_bpe(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    assert load_bpe(tmp_path) is None


def test_a_pretrained_fingerprint_follows_the_tokenizer(tmp_path: Path) -> None:
    make_bpe(300).save(tmp_path / "a")
    make_bpe(301).save(tmp_path / "b")
    one, again, other = (load_pretrained(HFSettings(kind="hf", path=str(tmp_path / name))) for name in "aab")
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config

    settings = HFSettings(kind="hf", path=str(tmp_path))
    message = r"tokenizer\.path=.*: the folder holds no tokenizer that transformers can load"
    with pytest.raises(UserError, match=message):
        load_pretrained(settings)
    GPT2Config().save_pretrained(tmp_path)  # from this alone transformers makes a tokenizer without a vocabulary
    with pytest.raises(UserError, match=message):
        load_pretrained(settings)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    import json

    make_bpe().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(UserError, match=r"tokenizer\.path=.*: no end token"):
        load_pretrained(HFSettings(kind="hf", path=str(tmp_path)))


def test_without_a_network_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    hub.hub_reachable.cache_clear()
    with pytest.raises(
        UserError, match=r"tokenizer\.path=nobody/nothing: no such folder, .* use tokenizer=bpe"
    ) as error:
        load_pretrained(HFSettings(kind="hf", path="nobody/nothing"))
    hub.hub_reachable.cache_clear()
    assert "\n" not in str(error.value)


def test_an_error_of_the_hub_that_says_nothing_is_named_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("natattn.data.text.tokenizers.hub_reachable", lambda: True)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(UserError, match=r"not loadable from the hub \(AssertionError\)"):
        load_pretrained(HFSettings(kind="hf", path="somebody/something"))
