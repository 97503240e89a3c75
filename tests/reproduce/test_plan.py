"""Tuning on seeds of its own, a widened grid, and the table's seeds at what won."""

import math

import pytest

from natattn.reproduce.plan import Plan, final_trial, plan
from natattn.reproduce.study import StudySettings, Trial, arms_of, placebos_of

TWICE = {"arm": "tuned", "baseline": "fixed"}


def study(**changes: object) -> StudySettings:
    values: dict[str, object] = {
        "name": "made",
        "title": "made",
        "seeds": [1, 2],
        "corpora": {"text": {}},
        "tuning": {"grid": [0.01, 0.1, 1.0], "seeds": [0]},
        "arms": {
            "tuned": {"tuned": True, "placebos": {"shuffled": ["optim.placebo=shuffled"]}},
            "fixed": {},
        },
        "budgets": {"cpu": {}},
    }
    return StudySettings.model_validate(values | changes)


def valley(bottom: float, done: set[Trial] | None = None):
    """Scores with their least at one rate; only of trials that are done."""

    def score(trial: Trial) -> float | None:
        if done is not None and trial not in done:
            return None
        return abs(math.log10(trial.rate / bottom)) if trial.rate is not None else 0.0

    return score


def run_to_the_end(made: StudySettings, bottom: float) -> tuple[Plan, int]:
    """Plan, do what is wanted, and plan again until nothing is missing; how many rounds that took."""
    done: set[Trial] = set()
    for rounds in range(20):
        found = plan(made, valley(bottom, done))
        if set(found.trials) <= done:
            return found, rounds
        done |= set(found.trials)
    raise AssertionError("never ends")


def test_the_table_waits_for_the_tuning_and_uses_other_seeds():
    first = plan(study(), valley(0.1, set()))
    of_tuned = [trial for trial in first.trials if trial.arm == "tuned"]
    assert [(trial.rate, trial.seed) for trial in of_tuned] == [(0.01, 0), (0.1, 0), (1.0, 0)]
    assert {trial.seed for trial in first.trials if trial.arm == "fixed"} == {1, 2}
    last, rounds = run_to_the_end(study(), 0.1)
    assert rounds == 2
    assert {(t.rate, t.seed) for t in last.trials if t.arm == "tuned"} >= {(0.1, 1), (0.1, 2)}
    assert not last.tuned["text", "tuned"].at_edge


def test_placebos_train_at_the_value_of_the_arm_they_stand_in_for():
    last, _ = run_to_the_end(study(), 0.1)
    arms = arms_of(study())
    assert placebos_of(arms, "tuned") == ["tuned:shuffled"]
    assert {(t.rate, t.seed) for t in last.trials if t.arm == "tuned:shuffled"} == {(0.1, 1), (0.1, 2)}


@pytest.mark.parametrize(
    ("bottom", "widenings", "tried", "best", "at_edge"),
    [
        (10.0, 1, [0.01, 0.1, 1.0, 10.0], 10.0, True),  # still at the edge: marked
        (10.0, 2, [0.01, 0.1, 1.0, 10.0, 100.0], 10.0, False),
        (0.001, 2, [0.0001, 0.001, 0.01, 0.1, 1.0], 0.001, False),
        (0.01, 0, [0.01, 0.1, 1.0], 0.01, True),
    ],
)
def test_a_winner_at_the_edge_widens_the_grid(bottom, widenings, tried, best, at_edge):
    made = study(tuning={"grid": [0.01, 0.1, 1.0], "seeds": [0], "widenings": widenings})
    last, _ = run_to_the_end(made, bottom)
    found = last.tuned["text", "tuned"]
    assert sorted(found.losses) == pytest.approx(tried)
    assert found.best == pytest.approx(best)
    assert found.at_edge is at_edge


def test_a_diverged_value_never_wins_and_an_arm_that_always_diverges_has_no_table():
    def score(trial: Trial) -> float | None:
        return math.inf if trial.rate != 1.0 else 5.0

    found = plan(study(tuning={"grid": [0.01, 0.1, 1.0], "seeds": [0], "widenings": 0}), score)
    assert found.tuned["text", "tuned"].best == 1.0
    nothing = plan(study(), lambda trial: math.inf)
    assert nothing.tuned["text", "tuned"].best is None
    assert final_trial(nothing, arms_of(study())["tuned"], "text", 1) is None
    assert not [trial for trial in nothing.trials if trial.arm == "tuned:shuffled"]


def test_arms_of_some_corpora_and_seeds():
    made = study(
        corpora={"text": {}, "other": {}}, arms={"some": {"corpora": ["other"], "seeds": [7]}, "all": {}}, tuning=None
    )
    trials = plan(made, lambda trial: 0.0).trials
    assert [(t.corpus, t.seed) for t in trials if t.arm == "some"] == [("other", 7)]
    assert len([t for t in trials if t.arm == "all"]) == 4


def test_a_product_crosses_its_dimensions():
    made = study(
        arms={"grid": {"overrides": ["a=1"], "product": [{"x": ["b=1"], "y": ["b=2"]}, {"z": ["c=3", "d=4"]}]}},
        tuning=None,
    )
    assert {name: arm.overrides for name, arm in arms_of(made).items()} == {
        "grid:x:z": ("a=1", "b=1", "c=3", "d=4"),
        "grid:y:z": ("a=1", "b=2", "c=3", "d=4"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": {"grid": [0.1, 1.0], "seeds": [1]}}, "also seeds of the final table"),
        ({"tuning": None}, "no grid is given"),
        ({"tuning": {"grid": [1.0, 0.1], "seeds": [0]}}, "must ascend"),
        ({"comparisons": [{"arm": "tuned", "baseline": "nobody"}]}, "nobody is named but not there"),
        ({"comparisons": [TWICE, {**TWICE, "claim": "R3"}]}, "comparisons: tuned − fixed, final_loss, is there twice"),
        ({"analyses": {"a": {"arms": ["nobody"], "of": "run", "judges": [], "where": ""}}}, "nobody is named"),
        ({"budgets": {"cpu": {"arms": ["nobody"]}}}, "nobody is named"),
        ({"arms": {"fixed": {"corpora": ["txet"]}}}, "txet is named but not there"),
        (
            {"arms": {"a": {"product": [{"x": []}]}, "b": {}}, "comparisons": [{"arm": "a", "baseline": "b"}]},
            "a has a product",
        ),
        ({"name": "my-study"}, "should match pattern"),
    ],
)
def test_a_study_that_is_not_whole_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)
