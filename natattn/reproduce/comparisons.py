"""Differences between a study's arms, judged by the protocol: pairs, placebos, Holm's intervals, verdicts."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.reproduce.settings import ComparisonSettings, Metric, StudySettings
from natattn.reproduce.studies import Arm, arms_of, placebos_of
from natattn.statistics.paired import Difference, Verdict, differences_of, excludes_zero, verdict

# (metric, corpus, arm, other, seed) → the difference arm − other; None where a run is missing or diverged.
Measure = Callable[[Metric, str, str, str, int], float | None]


@dataclass(frozen=True)
class Comparison:
    """One difference, with what may be said of it.

    Attributes:
        comparison: that it answers; of a placebo's row that of its arm.
        arm, other: what is subtracted from what.
        missing: seeds without a difference.
        unbeaten: placebos of the arm against which the interval does not exclude zero in the claimed direction.
        verdict: None for a row that is only a part of another's: the difference to a placebo.
    """

    comparison: ComparisonSettings
    corpus: str
    arm: str
    other: str
    difference: Difference
    missing: int
    unbeaten: tuple[str, ...]
    verdict: Verdict | None

    @property
    def title(self) -> str:
        """What was compared, in words."""
        quantity = PAIRED_QUANTITIES[self.comparison.metric]
        beyond = f", less {self.comparison.threshold:g} that the claim allows" if self.comparison.threshold else ""
        return f"{self.arm} − {self.other}: {quantity.title}{beyond}"


def judge(study: StudySettings, measure: Measure, leaky: Collection[tuple[str, str]] = ()) -> list[Comparison]:
    """Every comparison of the study on every corpus, those of one corpus and metric adjusted together (protocol, 4).

    A difference to a placebo is a row of its own in the same family: it must exclude zero there too.

    Args:
        leaky: (corpus, arm) whose losses are no evidence; nothing of theirs is `supported`.
    """
    arms = arms_of(study)
    found: list[Comparison] = []
    for corpus in study.corpora:
        for metric in dict.fromkeys(comparison.metric for comparison in study.comparisons):
            chosen = [
                comparison
                for comparison in study.comparisons
                if comparison.metric == metric
                and corpus in arms[comparison.arm].corpora
                and (comparison.corpora is None or corpus in comparison.corpora)
            ]
            family = _judge_family(study, chosen, arms, corpus, measure, leaky)
            found += family
    return found


def _judge_family(
    study: StudySettings, chosen: Sequence[ComparisonSettings], arms: dict[str, Arm], corpus: str, measure: Measure,
    leaky: Collection[tuple[str, str]],
) -> list[Comparison]:  # fmt: skip
    rows = list(_rows(chosen, arms))
    samples = [_sample(arms[arm].seeds, comparison, corpus, arm, other, measure) for comparison, arm, other in rows]
    differences = dict(zip(map(_name, rows), differences_of([sample for sample, _ in samples]), strict=True))
    missing = dict(zip(map(_name, rows), (absent for _, absent in samples), strict=True))
    judged = []
    for comparison, arm, other in rows:
        name = _name((comparison, arm, other))
        said: Verdict | None = None
        unbeaten: tuple[str, ...] = ()
        if arm == comparison.arm and other == comparison.baseline:
            compared = placebos_of(arms, arm) if comparison.placebos else []
            names = [_name((comparison, arm, placebo)) for placebo in compared]
            unbeaten = tuple(
                placebo
                for placebo, each in zip(compared, names, strict=True)
                if not excludes_zero(differences[each], comparison.claimed)
            )
            said = verdict(
                differences[name],
                indifference=_indifference(study, comparison),
                claimed=comparison.claimed,
                placebos=[differences[each] for each in names],
                complete=not any(missing[each] for each in (name, *names))
                and not any((corpus, each) in leaky for each in (arm, other)),
            )
        judged.append(Comparison(comparison, corpus, arm, other, differences[name], missing[name], unbeaten, said))
    return judged


def _indifference(study: StudySettings, comparison: ComparisonSettings) -> float:
    """δ; none beside a threshold, which says already what is negligible."""
    if comparison.threshold:
        return 0.0
    return study.indifference if comparison.indifference is None else comparison.indifference


Row = tuple[ComparisonSettings, str, str]


def _rows(chosen: Sequence[ComparisonSettings], arms: dict[str, Arm]) -> Iterable[Row]:
    """The comparisons, then each arm against its placebos, once."""
    rows: dict[tuple[object, ...], Row] = {}
    for comparison in chosen:
        row = comparison, comparison.arm, comparison.baseline
        rows.setdefault(_name(row), row)
    for comparison in chosen:
        for placebo in placebos_of(arms, comparison.arm) if comparison.placebos else ():
            row = comparison, comparison.arm, placebo
            rows.setdefault(_name(row), row)
    return rows.values()


def _name(row: Row) -> tuple[object, ...]:
    """What tells a row from the others of its family. A threshold is the claim's, and not one of placebos."""
    comparison, arm, other = row
    return arm, other, comparison.threshold if other == comparison.baseline else 0.0


def _sample(
    seeds: Sequence[int], comparison: ComparisonSettings, corpus: str, arm: str, other: str, measure: Measure
) -> tuple[list[float], int]:
    """Differences over the seeds, and how many have none."""
    threshold = comparison.threshold if other == comparison.baseline else 0.0
    values = [measure(comparison.metric, corpus, arm, other, seed) for seed in seeds]
    known = [value - threshold for value in values if value is not None and math.isfinite(value)]
    return known, len(values) - len(known)
