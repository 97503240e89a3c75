"""Runs packed into ``runs.jsonl`` and ``metrics.parquet``, and read back as if they were run folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from natattn.analysis.kept_runs import METRICS, RECORD, keep_runs, kept_run
from natattn.analysis.runs import find_runs, read_run_metrics, summarise_run
from natattn.errors import UserError


@pytest.fixture
def two_runs(make_run) -> list[Path]:
    return [make_run(f"run_{seed}", seed=seed, config_hash=f"{seed:064d}"[::-1]) for seed in (1, 2)]


def test_packed_runs_are_summarised_like_their_folders(two_runs: list[Path], tmp_path: Path):
    keep_runs(two_runs, tmp_path / "kept", ["*"])
    packed = find_runs([tmp_path / "kept"])
    assert [run.parent for run in packed] == [tmp_path / "kept" / RECORD] * 2
    assert find_runs([tmp_path / "kept" / RECORD, packed[0]]) == packed
    for folder, run in zip(two_runs, packed, strict=True):
        assert replace(summarise_run(run), folder=folder) == summarise_run(folder)


def test_metrics_are_kept_at_evaluation_steps_and_in_a_fraction_of_the_bytes(two_runs: list[Path], tmp_path: Path):
    keep_runs(two_runs, tmp_path)
    run = tmp_path / RECORD / "1".ljust(16, "0")
    metrics = read_run_metrics(run)
    assert set(metrics.step.tolist()) == set(range(0, 601, 50))
    assert {"validation/loss", "train/loss", "time/train_seconds"} <= set(metrics.names())
    assert sum((tmp_path / name).stat().st_size for name in (RECORD, METRICS)) < 2 * 25_000


def test_a_run_that_is_packed_again_replaces_itself(make_run, two_runs: list[Path], tmp_path: Path):
    keep_runs(two_runs, tmp_path)
    again = make_run("again", seed=1, advantage=0.5, config_hash=f"{1:064d}"[::-1])
    keep_runs([again], tmp_path)
    packed = find_runs([tmp_path / RECORD])
    assert len(packed) == 2
    finals = {run.seed: run.arms[1].final_loss for run in map(summarise_run, packed)}
    assert finals[1] == summarise_run(again).arms[1].final_loss != summarise_run(two_runs[0]).arms[1].final_loss


def test_a_configuration_with_an_absolute_path_is_not_packed(make_run, tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.train=.*names a folder of this machine"):
        keep_runs([make_run(config={"data": {"train": str(tmp_path / "valid.txt")}})], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("damaged", [RECORD, METRICS])
def test_a_damaged_record_is_one_line(damaged: str, two_runs: list[Path], tmp_path: Path):
    keep_runs(two_runs, tmp_path)
    run = find_runs([tmp_path / RECORD])[0]
    (tmp_path / damaged).write_text("{")
    with pytest.raises(UserError, match=f"{damaged}: not"):
        read_run_metrics(run)
    assert summarise_run(run).problem is not None


def test_every_published_run_is_read(capsys: pytest.CaptureFixture[str]):
    record = Path(__file__).parents[2] / "docs" / "results" / RECORD
    lines = record.read_text(encoding="utf-8").splitlines()
    assert len(find_runs([record])) == len(lines) > 900
    name = json.loads(lines[0])["name"]
    assert kept_run(record / name) is not None
    assert kept_run(record / "nobody") is None
    assert summarise_run(record / name).problem is None
