"""Tokenizers. Each saves a folder that transformers.AutoTokenizer loads."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from natattn.config.base import Settings
from natattn.config.messages import first_line
from natattn.data.cache import replacing
from natattn.data.hub import hub_reachable
from natattn.errors import UserError
from natattn.storage.atomic import pretrained_source
from natattn.storage.documents import hash_of

END_TOKEN = "<|endoftext|>"


class ByteSettings(Settings):
    """One token per UTF-8 byte."""

    kind: Literal["byte"]


class BPESettings(Settings):
    """Byte-level BPE of at most `vocab_size` tokens (256 bytes, the end token, merges), trained on the train split."""

    kind: Literal["bpe"]
    vocab_size: int = Field(ge=257, le=2**24)


class HFSettings(Settings):
    """A pretrained tokenizer: a transformers folder or a hub name."""

    kind: Literal["hf"]
    path: str = Field(min_length=1)


TokenizerSettings = Annotated[ByteSettings | BPESettings | HFSettings, Field(discriminator="kind")]


class Tokenizer(Protocol):
    """A map between text and ids below vocab_size; `end_token_id` follows each document."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_token_id(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens; special tokens in the text are plain text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, as integers of any width."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, with the end token spelled out."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files from which transformers.AutoTokenizer.from_pretrained(folder) loads this tokenizer."""
        ...


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library, in which END_TOKEN is a special token."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.encode_special_tokens = True  # the end token spelled in a text is plain text
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.end_token_id: int = tokenizer.token_to_id(END_TOKEN)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_TOKEN,
            "bos_token": END_TOKEN,
            "clean_up_tokenization_spaces": False,
        }
        with replacing(folder / "tokenizer_config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with replacing(folder / "tokenizer.json") as temporary:  # written last: a folder with this file is complete
            self._tokenizer.save(str(temporary))


class ByteTokenizer:
    """Token i is byte i; token 256 is the end token."""

    vocab_size = 257
    end_token_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(END_TOKEN.encode() if i == 256 else bytes([i]) for i in ids).decode(errors="replace")

    def save(self, folder: Path) -> None:
        # In `tokenizers` bytes are a byte-level BPE without merges.
        LibraryTokenizer(_byte_level({_byte_name(byte): byte for byte in range(256)})).save(folder)


class HFTokenizer:
    """A tokenizer of transformers; documents end with its end token or, for an encoder, with its separator.

    Raises: UserError if it has neither.
    """

    def __init__(self, tokenizer: Any, path: str) -> None:
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if end is None:
            raise UserError(f"tokenizer.path={path}: no end token (eos_token or sep_token). Use a tokenizer with one")
        self._tokenizer = tokenizer
        self.vocab_size: int = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
        self.end_token_id: int = end

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self.encode_batch([text])[0]]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # verbose=False: a document longer than the pretrained model's context is fine here.
        encoded = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [np.array(ids, dtype=np.uint32) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the saved files."""
        state = hashlib.sha256()
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            for file in sorted(Path(folder).iterdir()):
                state.update(f"{file.name}\0".encode() + file.read_bytes())
        return state.hexdigest()


def load_pretrained(settings: HFSettings) -> HFTokenizer:
    """Load a pretrained tokenizer. Raises: UserError if the folder holds none or the hub cannot provide it."""
    from transformers import AutoTokenizer

    source, options = pretrained_source(settings.path)
    is_folder = os.path.isdir(source)
    online = not is_folder and hub_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=not online, **options
        )
    except Exception as error:  # transformers raises many types if there is no tokenizer to load
        raise UserError(_load_failure(settings.path, is_folder, online, error)) from error
    loaded = HFTokenizer(tokenizer, settings.path)
    if not loaded.encode("text"):
        # With only a config.json, transformers builds a tokenizer with an empty vocabulary.
        raise UserError(_load_failure(settings.path, is_folder, online, ValueError("no vocabulary")))
    return loaded


def _load_failure(path: str, is_folder: bool, online: bool, error: Exception) -> str:
    if is_folder:
        return f"tokenizer.path={path}: the folder holds no tokenizer that transformers can load"
    if online:
        return f"tokenizer.path={path}: no such folder and not loadable from the hub ({first_line(error)})"
    from huggingface_hub import constants

    return (
        f"tokenizer.path={path}: no such folder, the Hugging Face Hub cannot be reached and {constants.HF_HUB_CACHE} "
        "does not hold it; without a network use tokenizer=bpe, tokenizer=byte or a folder"
    )


def bpe_fingerprint(settings: BPESettings, train_digest: str) -> str:
    """Return everything that the trained BPE depends on: settings, text and version of the library."""
    return hash_of([settings.vocab_size, train_digest, version("tokenizers")])


def train_bpe(settings: BPESettings, texts: Iterator[str]) -> LibraryTokenizer:
    """Train a BPE on texts, deterministically. Short texts may give fewer tokens than requested."""
    from tokenizers import pre_tokenizers, trainers

    tokenizer = _byte_level({})
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return LibraryTokenizer(tokenizer)


def load_bpe(folder: Path) -> LibraryTokenizer | None:
    """Load the BPE saved in a folder; return None if there is none or it cannot be read."""
    from tokenizers import Tokenizer as Library

    try:
        return LibraryTokenizer(Library.from_file(str(folder / "tokenizer.json")))
    except Exception:  # the library raises Exception for a missing or damaged file
        return None


def _byte_level(vocabulary: dict[str, int]) -> Any:
    """Return a byte-level BPE without merges, whose tokens are bytes."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    tokenizer = Library(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if vocabulary:
        tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    return tokenizer


def _byte_name(byte: int) -> str:
    """Return the character that represents a byte in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))
