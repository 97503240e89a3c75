"""What a study measures of pairs of runs."""

from pathlib import Path

import pytest

from natattn.analysis.runs import RunSummary, summarise_run
from natattn.reproduce.done import DoneRuns
from natattn.reproduce.jobs import JobMaker
from natattn.reproduce.plan import plan
from natattn.reproduce.settings import StudySettings
from natattn.reproduce.studies import Trial
from natattn.reproduce.trials import Trials

STUDY = StudySettings.model_validate(
    {
        "name": "made", "title": "made", "seeds": [1], "corpora": {"text": {}}, "arms": {"a": {}, "b": {}},
        "budgets": {"cpu": {}},
    }
)  # fmt: skip


class Given(Trials):
    """Trials whose runs are given by arm."""

    def __init__(self, folder: Path, runs: dict[str, RunSummary]) -> None:
        super().__init__(STUDY, JobMaker(folder, None), DoneRuns([]))
        self.runs = runs

    def run(self, trial: Trial) -> RunSummary | None:
        return self.runs[trial.arm]


@pytest.mark.parametrize("metric", ["final_loss", "mean_loss", "steps_to_target"])
def test_a_pair_is_measured_and_one_with_a_diverged_arm_or_another_beginning_is_not(metric, make_run, tmp_path):
    def summary(name: str, **changed) -> RunSummary:
        return summarise_run(make_run(name, arms=("natural",), seed=1, **changed))

    alike, better = summary("alike"), summary("better", advantage=0.3)
    diverged = summary("diverged", advantage=0.3, diverged_at=500)
    elsewhere = summary("elsewhere", advantage=0.3, initial_weights_hash="another")
    wanted = plan(STUDY, lambda trial: 0.0)

    def measured(run: RunSummary) -> float | None:
        return Given(tmp_path, {"a": run, "b": alike}).measure(wanted, metric, "text", "a", "b", 1)

    found = measured(better)
    assert found is not None
    assert found < 0
    assert measured(diverged) is None
    assert measured(elsewhere) is None
