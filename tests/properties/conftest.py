"""Property tests: few examples by default, always the same; many with --hypothesis-profile=slow, other ones each time.

At the end a line says how many examples of each property were tried.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from property_tools import TRIED, run

_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=10, derandomize=True, **_COMMON)
settings.register_profile("slow", max_examples=300, print_blob=True, **_COMMON)
settings.load_profile("few")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is an empty one."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints and the best, whose schedule lets it go on."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    small = (
        "size.n_layer=1 size.n_embd=8 size.n_head=1 size.context=8 tokenizer=byte tracker=off data=grammar "
        "data.train_tokens=500 data.validation_tokens=100 data.test_tokens=0 train.batch_size=1 train.steps=3 "
        "train.checkpoint_every=1 train.keep_checkpoints=3 train.evaluate_every=1 train.device=cpu schedule=constant "
        "schedule.warmup_steps=1"
    )
    ended = run("train", *small.split(), f"hydra.run.dir={folder}")
    assert ended.code == 0, ended
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(TRIED.items()))
        terminalreporter.write_line(f"examples tried: {counts}")
