"""What a study measures of pairs of runs, and which analyses it takes for whole."""

import json
from pathlib import Path

import pytest

from natattn.analysis.runs import RunSummary, summarise_run
from natattn.analysis.settings import AnalyzeSettings
from natattn.config.compose import compose, plain_values, validated
from natattn.errors import UserError
from natattn.reproduce.analyses import AnalysisSpec, kept_analysis, key_of_analysis, wanted_analyses
from natattn.reproduce.jobs import DoneRuns, JobMaker
from natattn.reproduce.plan import Trials, plan
from natattn.reproduce.study import AnalysisSettings, StudySettings, Trial

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


def test_an_analysis_without_its_sections_is_refused_and_one_that_broke_off_is_not_whole(tmp_path: Path):
    analysis = AnalysisSettings(arms=("a",), of="run", judges=(), where="made")
    study = STUDY.model_copy(update={"analyses": {"x": analysis}})
    trials = Trials(study, JobMaker(tmp_path, None), DoneRuns([]))
    with pytest.raises(UserError, match="study=made: analysis x: needs its sections"):
        list(wanted_analyses(trials, plan(study, lambda trial: None)))
    composed = compose(["sections=[frozen,cascades]"], "analyze")
    options = validated(plain_values(composed), AnalyzeSettings)
    wanted = AnalysisSpec("x", analysis, options, (Trial("text", "a", None, 1),), "key")
    (tmp_path / "key").mkdir()
    for sections, is_whole in (({"frozen": {}}, False), ({"frozen": {}, "cascades": {}}, True)):
        (tmp_path / "key" / "analysis.json").write_text(json.dumps({"results": sections}))
        assert kept_analysis(wanted, [tmp_path / "nowhere", tmp_path]) == (tmp_path / "key" if is_whole else None)


def test_the_key_of_an_analysis_does_not_change():
    """A new key of `natattn analyze` must not change the hash of older ones: kept analyses would not be found."""
    asked = validated(plain_values(compose([], "analyze")), AnalyzeSettings)
    assert key_of_analysis("run", asked, ["a run"]) == "bc30c1fad691da70"  # as when the analyses were kept
    of_text = asked.model_copy(update={"tower": "text"})
    assert key_of_analysis("run", of_text, ["a run"]) == "91b987475fa6545e"
