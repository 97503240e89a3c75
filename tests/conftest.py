"""Shared fixtures: a cache of its own, a small text, and the smallest model that still has every part."""

import os
import random
from pathlib import Path

import pytest
from run_folders import make_run  # noqa: F401  (a fixture of several folders of tests)

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import: no test waits for a network, and none depends on one

WORDS = ("attention", "is", "a", "pattern", "of", "energy", "and", "the", "gradient", "follows", "it", "down")
TINY = (
    "size.n_layer=2",
    "size.n_embd=16",
    "size.n_head=2",
    "size.context=16",
    "tokenizer=byte",
    "tracker=off",
    "train.batch_size=4",
    "train.steps=6",
    "train.evaluate_every=3",
    "train.checkpoint_every=2",
    "train.log_every=2",
    "train.device=cpu",
    "schedule.warmup_fraction=0.3",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token caches of tests never touch the user's, and are shared between tests."""
    monkeypatch.setenv("NATATTN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 12 kB of text in sentences of a few words."""
    generator = random.Random(0)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(4, 9))) + "." for _ in range(320)]
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> list[str]:
    """Overrides of a run that trains in about a second."""
    return [*TINY, "data=text", f"data.train={text_file}"]
