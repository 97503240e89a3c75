"""A study whose corpora are of different tasks: units, metrics and directions in its tables and pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from natattn.analysis.runs import RunSummary, summarise_run
from natattn.report.table import Badge
from natattn.reproduce.figures import differences_figure, study_profile_figure
from natattn.reproduce.jobs import DoneRuns, JobMaker
from natattn.reproduce.ledger import Comparison, judge
from natattn.reproduce.plan import Plan, Trials
from natattn.reproduce.study import StudySettings, Trial
from natattn.reproduce.study_tables import arms_table, differences_table, findings, tuning_table, unit_of_corpus

MakeRun = Callable[..., Path]
TASKS = {"text": "language", "pictures": "vision", "pairs": "multimodal"}
UNITS = {"text": "token", "pictures": "image", "pairs": "pair"}
STUDY = StudySettings.model_validate(
    {
        "name": "made", "title": "made", "seeds": [1, 2, 3, 4, 5], "target": "old", "indifference": 0.001,
        "corpora": {corpus: {"overrides": [f"task={task}"]} for corpus, task in TASKS.items()},
        "arms": {"old": {}, "new": {}}, "budgets": {"cpu": {}},
        "comparisons": [
            {"claim": "A3", "arm": "new", "baseline": "old"},
            {"claim": "A3", "arm": "new", "baseline": "old", "metric": "test_error", "corpora": ["pictures", "pairs"]},
            {"arm": "old", "baseline": "new", "metric": "test_error", "corpora": ["pictures", "pairs"]},
        ],
    }
)  # fmt: skip


class Given(Trials):
    """Trials whose runs are given by corpus, arm and seed."""

    def __init__(self, folder: Path, runs: dict[tuple[str, str, int], RunSummary]) -> None:
        super().__init__(STUDY, JobMaker(folder, None), DoneRuns([]))
        self.runs = runs

    def run(self, trial: Trial) -> RunSummary | None:
        return self.runs.get((trial.corpus, trial.arm, trial.seed))


Made = tuple[Given, Plan, list[Comparison]]


@pytest.fixture
def made(make_run: MakeRun, tmp_path: Path) -> Callable[..., Made]:
    """A study of some corpora's runs, of which the new arm is better in all."""

    def make(corpora: tuple[str, ...]) -> Made:
        runs = {}
        for corpus in corpora:
            for arm, advantage in (("old", 0.0), ("new", 0.3)):
                for seed in STUDY.seeds:
                    folder = make_run(
                        f"{corpus}_{arm}_{seed}", task=TASKS[corpus], arms=("natural",), seed=seed, steps=200,
                        evaluations=10, advantage=advantage + 0.001 * seed * (arm == "new"),
                    )  # fmt: skip
                    runs[corpus, arm, seed] = summarise_run(folder)
        trials = Given(tmp_path, runs)
        plan = trials.plan()
        return trials, plan, judge(STUDY, lambda *asked: trials.measure(plan, *asked))

    return make


def test_every_difference_has_the_unit_and_the_direction_of_its_corpus(made) -> None:
    trials, plan, judged = made(tuple(TASKS))
    found = {(each.where, each.what.rpartition(": ")[2]): each for each in findings(trials, plan, judged)}
    assert {key: each.unit for key, each in found.items()} == {
        ("text", "final loss"): "nats/token",
        ("pictures", "final loss"): "nats/image",
        ("pairs", "final loss"): "nats/pair",
        ("pictures", "test error"): "share",
        ("pairs", "test error"): "share",
    }
    assert {each.verdict for each in found.values()} == {"supported"}  # what errs less is better
    assert all(each.estimate.value < 0 for each in found.values())
    assert found["pictures", "test error"].estimate.value == pytest.approx(-0.0303)
    table = differences_table(trials, plan, judged)
    assert "Losses in nats/token or nats/image or nats/pair." in table.caption
    rows = {(row[0], row[1]): row for row in table.rows}
    assert len(rows) == 3 + 2 * 2
    assert rows["pictures", "new − old: test error"][7] == Badge("supported")
    assert rows["pictures", "old − new: test error"][7] == "the other way"  # a row without a claim


def test_what_a_task_measures_stands_in_the_table_of_arms(made) -> None:
    trials, plan, _ = made(tuple(TASKS))
    table = arms_table(trials, plan)
    rows = {(row[0], row[1]): dict(zip(table.headings, row, strict=True)) for row in table.rows}
    assert rows["text", "new"]["test accuracy"] is None
    assert rows["pictures", "new"]["test accuracy"].value > rows["pictures", "old"]["test accuracy"].value > 0.7
    assert rows["pairs", "new"]["test image → text recall@1"].value > 0.7
    assert rows["pairs", "new"]["test accuracy"] is None
    assert rows["pairs", "new"]["reached"] == "5 of 5"


def test_a_study_of_text_alone_has_no_such_columns(made) -> None:
    only_text, plan, _ = made(("text",))
    assert not [head for head in arms_table(only_text, plan).headings if "accuracy" in head or "recall" in head]


def test_pictures_have_a_panel_for_each_corpus(made, monkeypatch: pytest.MonkeyPatch) -> None:
    from natattn.reproduce import figures

    labels: list[str] = []

    def drawn(draw, size) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=size)
        draw(figure)
        labels.extend(panel.get_xlabel() for panel in figure.axes)
        return b""

    monkeypatch.setattr(figures, "drawn", drawn)
    trials, plan, judged = made(tuple(TASKS))
    assert differences_figure(trials, plan, judged) is not None
    assert labels == [f"final loss difference, nats/{unit}" for unit in UNITS.values()]
    assert study_profile_figure(trials, plan) is not None


def test_until_there_are_runs_the_unit_is_that_of_the_task(made) -> None:
    trials, plan, judged = made(("text",))
    assert {corpus: unit_of_corpus(trials, plan, corpus) for corpus in TASKS} == UNITS
    units = {each.where: each.unit for each in findings(trials, plan, judged) if "loss" in each.what}
    assert units == {corpus: f"nats/{unit}" for corpus, unit in UNITS.items()}
    assert tuning_table(trials, plan) is None
