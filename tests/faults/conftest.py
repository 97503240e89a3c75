"""A server of forked commands, and a run that is never disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forking import ForkServer
from wholeness import Undisturbed

SMALL = (
    "size.n_layer=1",
    "size.n_embd=16",
    "size.n_head=2",
    "size.context=16",
    "tokenizer=bpe",
    "tokenizer.vocab_size=300",
    "tracker=off",
    "train.batch_size=4",
    "train.steps=12",
    "train.evaluate_every=4",
    "train.checkpoint_every=3",
    "train.log_every=2",
    "train.device=cpu",
    "schedule.warmup_fraction=0.3",
    "model.dropout=0.1",
)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="session")
def small(text_file: Path) -> list[str]:
    """Overrides of a run of about a second that has every part: tokenizer, test split, dropout, two arms."""
    return [*SMALL, "data=text", f"data.train={text_file}"]


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    place = tmp_path_factory.mktemp("undisturbed")
    arguments = ["train", *small, f"hydra.run.dir={place / 'run'}"]
    assert server.run(arguments, log=place / "log", cwd=place, NATATTN_CACHE=str(place / "cache")) == 0
    return Undisturbed(place / "run", place / "cache")
