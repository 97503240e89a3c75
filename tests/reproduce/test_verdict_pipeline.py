"""The pipeline from runs to verdicts on simulated studies: how often it claims what is not there, and finds what is.

The level holds for one data set and metric, whose differences are adjusted together; and for a claim over several data
sets, whose verdict ``overall`` gives.
"""

from collections import Counter

import numpy as np
import pytest

from natattn.report.table import Estimate, Finding
from natattn.reproduce.ledger import judge
from natattn.reproduce.plan import Plan, final_trial, plan
from natattn.reproduce.results import overall
from natattn.reproduce.study import StudySettings, Trial, arms_of

STUDIES = 1000
ALPHA = 0.05
SPREAD = 0.02  # of a run's loss around its arm's, nats; of two arms with the same seed half of it is shared


def made_study(rows: int, seeds: int, corpora: int = 1) -> StudySettings:
    """Candidates with a placebo each against one baseline, all tuned."""
    names = [f"candidate{row}" for row in range(rows)]
    arms: dict[str, object] = {"baseline": {"tuned": True}}
    arms |= {name: {"tuned": True, "placebos": {"constant": []}} for name in names}
    return StudySettings.model_validate(
        {
            "name": "simulated",
            "title": "simulated",
            "seeds": list(range(1, seeds + 1)),
            "corpora": {"text" if place == 0 else f"text{place}": {} for place in range(corpora)},
            "tuning": {"grid": [0.1, 1.0, 10.0], "seeds": [0]},
            "arms": arms,
            "comparisons": [{"claim": "X", "arm": name, "baseline": "baseline"} for name in names],
            "indifference": 0.002,
            "budgets": {"cpu": {}},
        }
    )


def verdicts(study: StudySettings, seed: int, effects: dict[str, float]) -> list[str]:
    """One simulated study, tuning included: losses are the arm's effect, the rate's, the seed's and a run's own."""
    generator = np.random.default_rng(seed)
    shared = {corpus: generator.normal(0, SPREAD / 2**0.5, 50) for corpus in study.corpora}
    runs: dict[Trial, float] = {}

    def loss(trial: Trial) -> float:
        if trial not in runs:
            rate = 0.05 * np.log10(trial.rate or 1.0) ** 2
            own = generator.normal(0, SPREAD / 2**0.5)
            runs[trial] = effects.get(trial.arm, 0.0) + rate + shared[trial.corpus][trial.seed] + own
        return runs[trial]

    found: Plan = plan(study, loss)
    arms = arms_of(study)

    def measure(metric: str, corpus: str, arm: str, other: str, seed: int) -> float | None:
        pair = [final_trial(found, arms[name], corpus, seed) for name in (arm, other)]
        return None if None in pair else loss(pair[0]) - loss(pair[1])  # type: ignore[arg-type]

    return [row.verdict for row in judge(study, measure) if row.verdict is not None]


@pytest.mark.parametrize(("rows", "seeds"), [(1, 5), (4, 5), (4, 9)])
def test_studies_of_identical_arms_claim_something_in_no_more_than_the_stated_share(rows, seeds):
    study = made_study(rows, seeds)
    claimed = Counter[str]()
    for number in range(STUDIES):
        said = set(verdicts(study, number, {}))
        claimed.update(said & {"supported", "refuted"})
        claimed["any"] += bool(said & {"supported", "refuted"})
    # Three standard errors of a share of 1,000 above the level: a correct pipeline fails once in 700.
    limit = ALPHA + 3 * (ALPHA * (1 - ALPHA) / STUDIES) ** 0.5
    assert claimed["any"] / STUDIES <= limit
    # A claim must beat its placebo too, so that `supported` is rarer than a one-sided half of the level.
    assert claimed["supported"] / STUDIES <= ALPHA / 2
    assert claimed["any"] > 0  # the simulation can fail


def test_a_claim_over_two_data_sets_is_supported_or_refuted_no_more_often_than_stated():
    study = made_study(1, 5, corpora=2)
    claimed = Counter[str]()
    for number in range(STUDIES):
        claimed[overall_of(verdicts(study, number, {}))] += 1
    limit = ALPHA + 3 * (ALPHA * (1 - ALPHA) / STUDIES) ** 0.5
    # It has to be supported on both, so that this is all but impossible by chance; one refutation is enough.
    assert claimed["supported"] / STUDIES <= 0.01
    assert (claimed["supported"] + claimed["refuted"]) / STUDIES <= limit
    assert claimed["refuted"] > 0


def overall_of(said: list[str]) -> str:
    return overall([Finding("X", "s", "w", "t", Estimate(0.0), "", 5, verdict) for verdict in said])


def test_an_effect_of_both_arms_and_placebos_is_found_and_one_that_the_placebo_has_too_is_not_claimed():
    study = made_study(1, 5)
    real, shared = Counter[str](), Counter[str]()
    for number in range(200):
        real.update(verdicts(study, number, {"candidate0": -0.1}))
        shared.update(verdicts(study, number, {"candidate0": -0.1, "candidate0:constant": -0.1}))
    assert real["supported"] >= 180
    assert shared["supported"] <= 10
    assert shared["inconclusive"] >= 180


def test_the_other_direction_is_refuted_and_a_small_difference_is_no_effect():
    study = made_study(1, 5)
    worse = Counter[str]()
    for number in range(100):
        worse.update(verdicts(study, number, {"candidate0": 0.1}))
    assert worse["refuted"] >= 90
    wide = study.model_copy(update={"indifference": 0.2})
    alike = Counter[str]()
    for number in range(100):
        alike.update(verdicts(wide, number, {}))
    assert alike["no effect"] >= 90


def test_missing_runs_and_leaks_bar_supported_but_not_refuted():
    study = made_study(1, 6)

    def measure(metric: str, corpus: str, arm: str, other: str, seed: int) -> float | None:
        return None if seed == 6 else -1.0 + 0.01 * seed

    (row, placebo) = judge(study, measure)
    assert (row.verdict, row.missing, row.difference.count) == ("inconclusive", 1, 5)
    assert placebo.verdict is None
    whole = judge(study, lambda *asked: -1.0 + 0.01 * asked[-1])
    assert whole[0].verdict == "supported"
    leaky = judge(study, lambda *asked: -1.0 + 0.01 * asked[-1], {("text", "candidate0")})
    assert leaky[0].verdict == "inconclusive"
    above = judge(study, lambda *asked: None if asked[-1] == 6 else 1.0 + 0.01 * asked[-1])
    assert above[0].verdict == "refuted"


def test_a_threshold_is_the_claims_and_not_the_placebos():
    study = made_study(1, 5)
    allowed = study.model_copy(
        update={"comparisons": (study.comparisons[0].model_copy(update={"threshold": 0.5}),)}
    )  # fmt: skip
    rows = judge(allowed, lambda *asked: 0.1 + 0.001 * asked[-1])
    assert rows[0].difference.mean == pytest.approx(0.103 - 0.5)
    assert rows[1].difference.mean == pytest.approx(0.103)
    assert rows[0].unbeaten == ("candidate0:constant",)
