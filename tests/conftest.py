"""Shared fixtures: folders of the tests' own, a small text, and the smallest model that still has every part."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import make_run  # noqa: F401  (a fixture of several folders of tests)

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import: no test waits for a network, and none depends on one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small for a second thread, and tests run in parallel

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


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the user's token cache or the system's temporary folder, by processes that tests start either.

    Of the session, so that they are set before the fixtures of modules, which train too.
    """
    temporary = tmp_path_factory.getbasetemp() / "tmp"
    temporary.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATATTN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)  # read from TMPDIR again
        yield


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
