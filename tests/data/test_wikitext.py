import time
from pathlib import Path

import datasets
import pytest

from natattn.data import hub
from natattn.data.text.wikitext import WikitextCorpus, WikitextSettings
from natattn.errors import UserError

ROWS = [
    "",
    " = First Article = \n",
    "",
    " Text of the first . \n",
    " = = A Section = = \n",
    " More text . \n",
    "",
    " = Second Article = \n",
    " Its text = short . \n",
]
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: data/train.parquet}
  - {split: validation, path: data/validation.parquet}
  - {split: test, path: data/test.parquet}
---
"""


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WikitextSettings:
    """A folder laid out like the release on the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "wikitext"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split in ("train", "validation", "test"):
        rows = [*ROWS, f" The {split} split . \n"]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(folder / "data" / f"{split}.parquet")
    return WikitextSettings(kind="wikitext", dataset=str(folder), release="wikitext-2-raw-v1")


def test_documents_are_articles_of_the_released_text(release: WikitextSettings) -> None:
    corpus = WikitextCorpus(release)
    assert corpus.name == "wikitext-2-raw-v1"
    documents = ["".join(document) for document in corpus.documents("train")]
    assert [document.strip().split("\n")[0] for document in documents] == ["= First Article = ", "= Second Article = "]
    assert "".join(documents) == "".join(row or " \n" for row in ROWS) + " The train split . \n"
    assert len({corpus.digest(split) for split in corpus.splits}) == 3
    assert corpus.digest("test") == WikitextCorpus(release).digest("test")


def test_without_a_network_there_is_one_quick_and_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    hub.hub_reachable.cache_clear()
    settings = WikitextSettings(kind="wikitext", dataset="Salesforce/wikitext", release="wikitext-2-raw-v1")
    configured = datasets.config.HF_HUB_OFFLINE
    start = time.perf_counter()
    with pytest.raises(UserError) as error:
        WikitextCorpus(settings).digest("train")
    hub.hub_reachable.cache_clear()
    assert time.perf_counter() - start < 18  # six attempts on a network take 23
    message = str(error.value)
    assert "\n" not in message
    for part in ("Salesforce/wikitext", str(tmp_path / "cache"), "data=stdlib", "data.train=FILE", "data=grammar"):
        assert part in message
    assert configured == datasets.config.HF_HUB_OFFLINE


def test_a_folder_without_the_release_is_an_error(tmp_path: Path) -> None:
    settings = WikitextSettings(kind="wikitext", dataset=str(tmp_path), release="wikitext-2-raw-v1")
    with pytest.raises(UserError, match=r"data\.dataset=.* cannot be loaded"):
        WikitextCorpus(settings).digest("train")
