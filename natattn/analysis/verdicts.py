"""From results of single models to findings: repetition over seeds, Holm's rule, and what one model alone may show.

Models of one analysis that differ only in their seed are repetitions. A number is taken of each model first, then the
intervals are over seeds (protocol 4). A model without a seed, such as a pretrained one, repeats nothing. Its own
interval, over its heads, layers or texts, can refute a general claim, because it is a counterexample, but not support
it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from scipy.special import stdtr, stdtrit

from natattn.report.table import Estimate, Finding, StudyTable
from natattn.statistics.paired import (
    LEAST_FOR_A_CLAIM,
    Difference,
    Verdict,
    differences_of,
    holm,
    holm_levels,
    mean,
    t_interval,
    verdict,
)

R = TypeVar("R")
Rule = Callable[[Difference, bool], Verdict]  # of a difference, and whether nothing is missing
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class AnalysisResult:
    """The results of `natattn analyze` for one model or one set of runs.

    Attributes:
        name: of the analysis in the study's file.
        where: the data or family of models, in words.
        seed: of the run; None for a set of runs or a pretrained model.
        steps: how long the model was trained; None as for ``seed``.
        results: of every question that was asked, {question: result}.
        runs: folders of the analysed runs.
        seeds: number of different seeds in a set of runs; None if unknown.
    """

    name: str
    where: str
    seed: int | None
    steps: int | None
    results: Mapping[str, Any]
    runs: tuple[Path, ...] = ()
    seeds: int | None = None

    def result(self, question: str, kind: type[R]) -> R:
        """Return the result of a question. Raises: KeyError if it was not asked, TypeError if it is of another type."""
        found = self.results[question]
        if not isinstance(found, kind):
            raise TypeError(f"{question}: {type(found).__name__} is not {kind.__name__}")
        return found

    @property
    def sections(self) -> Mapping[str, Any]:
        """The results without a type: of questions that still return sections."""
        return {name: found for name, found in self.results.items() if isinstance(found, dict)}


# The findings and tables of a study, from its name and the results of its models.
Judge = Callable[[str, Sequence[AnalysisResult]], tuple[list[Finding], list[StudyTable]]]


@dataclass(frozen=True)
class Fit:
    """A number with its 95 % t interval, which is symmetric: value ± t(0.975, degrees)·s.

    Attributes:
        degrees: degrees of freedom: points minus fitted numbers.
        count: points.
    """

    value: float
    low: float
    high: float
    degrees: int
    count: int

    @property
    def error(self) -> float:
        """The standard error s; nan if the interval or the degrees of freedom are unknown."""
        if self.degrees < 1 or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return math.nan
        return (self.high - self.low) / 2 / float(stdtrit(self.degrees, 0.5 + _CONFIDENCE / 2))

    def p_value(self, against: float) -> float:
        """Return the two-sided p-value of Student's t test that the number is ``against``; nan without an error."""
        distance = abs(self.value - against)
        if math.isnan(self.error) or math.isnan(distance):
            return math.nan
        if self.error == 0:
            return 1.0  # numbers that happen to be equal say nothing about their spread
        return 2 * float(stdtr(self.degrees, -distance / self.error))


def mean_of(sample: Sequence[float]) -> Fit:
    """Return the mean of repetitions as a fit."""
    centre, half = t_interval(sample)
    return Fit(centre, centre - half, centre + half, len(sample) - 1, len(sample))


def adjusted(fits: Sequence[Fit], against: float = 0.0) -> list[Difference]:
    """Return each number minus ``against``, Holm-adjusted as ``statistics.paired.differences_of`` does for samples."""
    raw = [fit.p_value(against) for fit in fits]
    corrected, levels = holm(raw), holm_levels(raw, _CONFIDENCE)
    found = []
    for fit, p_value, level in zip(fits, corrected, levels, strict=True):
        half = float(stdtrit(fit.degrees, 0.5 + level / 2)) * fit.error if fit.degrees > 0 else math.nan
        centre = fit.value - against
        if half == 0 and centre != 0:
            half = math.inf
        found.append(Difference(centre, fit.count, (centre - half, centre + half), p_value, None))
    return found


@dataclass(frozen=True)
class Measured:
    """A number of one model.

    Attributes:
        low, high: its own 95 % interval; nan without one.
        over: what that interval is over, such as "12 heads".
        missing: why there is no number, if there is none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    over: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Group:
    """Models that differ only in their seed; or one model without a seed.

    Attributes:
        label: for ``Finding.where``; includes the steps if an analysis was made at several.
    """

    label: str
    members: tuple[AnalysisResult, ...]

    @property
    def steps(self) -> int | None:
        """Return the number of training steps."""
        return self.members[0].steps

    @property
    def is_one_model(self) -> bool:
        """True for a model without a seed, which has no repetitions."""
        return self.members[0].seed is None

    @property
    def runs(self) -> tuple[Path, ...]:
        """The runs of all members, in their order."""
        return tuple(dict.fromkeys(run for member in self.members for run in member.runs))

    def results(self, question: str, kind: type[R]) -> list[R]:
        """Return the result of every member for a question."""
        return [member.result(question, kind) for member in self.members]


@dataclass(frozen=True)
class Row:
    """One measurement of a group that bears on a claim.

    Attributes:
        measured: one for each member.
        against: what the claim compares with: the verdict is about the number minus this.
        complete: false if something else bars the verdict ``supported``.
        note: the beginning of the finding's note.
    """

    claim: str
    what: str
    group: Group
    measured: tuple[Measured, ...]
    unit: str = ""
    against: float = 0.0
    complete: bool = True
    note: str = ""


def groups(analyses: Sequence[AnalysisResult], question: str) -> list[Group]:
    """Return the analyses that have a result for a question, grouped by name, text and steps.

    Analyses without a seed form groups of their own.
    """
    found: dict[tuple[object, ...], list[AnalysisResult]] = {}
    steps: dict[tuple[str, str], set[int | None]] = {}
    for index, analysed in enumerate(analyses):
        if question in analysed.results:
            alone = index if analysed.seed is None else None
            found.setdefault((analysed.name, analysed.where, analysed.steps, alone), []).append(analysed)
            steps.setdefault((analysed.name, analysed.where), set()).add(analysed.steps)
    result = []
    for members in found.values():
        first = members[0]
        several = len(steps[first.name, first.where]) > 1 and first.steps is not None
        result.append(Group(f"{first.where}, {first.steps:,} steps" if several else first.where, tuple(members)))
    return result


def by_seed(values: Sequence[tuple[object, float | None]]) -> list[float]:
    """Return the mean of every seed that has a finite value, from (seed, value)."""
    seeds: dict[object, list[float]] = {}
    for seed, value in values:
        if value is not None and math.isfinite(value):
            seeds.setdefault(seed, []).append(value)
    return [mean(of_seed) for of_seed in seeds.values()]


def over_seeds(group: Group, values: Sequence[Measured | float | None]) -> Estimate:
    """Return the mean over seeds with its 95 % t interval, or a model's own value; not adjusted.

    Args:
        values: one for each member; None and nan are left out.
    """
    own = [value if isinstance(value, Measured) else Measured(math.nan if value is None else value) for value in values]
    if group.is_one_model:
        return Estimate(own[0].value, own[0].low, own[0].high)
    return Estimate.of_mean(by_seed([(m.seed, each.value) for m, each in zip(group.members, own, strict=True)]))


def known(value: float) -> float | None:
    """Return a number as a cell of a table: None, which is unknown, for nan."""
    return None if math.isnan(value) else value


def one_sided(claimed: Literal["below", "above"], indifference: float) -> Rule:
    """Return the rule of protocol 7 for the claim that a number is below or above what it is compared with."""

    def decide(difference: Difference, complete: bool) -> Verdict:
        if any(map(math.isnan, difference.interval)):
            return "inconclusive"
        return verdict(difference, indifference=indifference, claimed=claimed, complete=complete)

    return decide


def near(tolerance: float) -> Rule:
    """Return the rule for the claim that a number is about another, by our definition at most ``tolerance`` away.

    ``supported`` if the whole interval is within, ``refuted`` if the whole interval is outside, else ``inconclusive``.
    """

    def decide(difference: Difference, complete: bool) -> Verdict:
        low, high = difference.interval
        if difference.count < LEAST_FOR_A_CLAIM or math.isnan(low) or math.isnan(high):
            return "inconclusive"
        if low > tolerance or high < -tolerance:
            return "refuted"
        return "supported" if complete and -tolerance <= low and high <= tolerance else "inconclusive"

    return decide


def findings_of(study: str, rows: Sequence[Row], rule: Rule) -> list[Finding]:
    """Return a finding for every row: Holm-adjusted over those over seeds; the own interval for single models."""
    repeated = [row for row in rows if not row.group.is_one_model]
    samples = [
        [
            value - row.against
            for value in by_seed(
                [(m.seed, each.value) for m, each in zip(row.group.members, row.measured, strict=True)]
            )
        ]
        for row in repeated
    ]
    differences = dict(zip(map(id, repeated), differences_of(samples), strict=True))
    return [_finding(study, row, differences.get(id(row)), rule) for row in rows]


def _finding(study: str, row: Row, difference: Difference | None, rule: Rule) -> Finding:
    have_value = [each for each in row.measured if math.isfinite(each.value)]
    if difference is None:
        own = row.measured[0]
        interval = own.low - row.against, own.high - row.against
        found = Difference(own.value - row.against, 1, interval, math.nan, None)
        # The count is not of seeds, so the least number of seeds must not bar the rule; support is barred.
        decided = rule(replace(found, count=LEAST_FOR_A_CLAIM), False)
    else:
        found = difference
        decided = rule(found, row.complete and len(have_value) == len(row.measured))
    low, high = found.interval
    return Finding(
        row.claim, study, row.what, row.group.label,
        Estimate(found.mean + row.against, low + row.against, high + row.against), row.unit,
        found.count if have_value else 0, decided, known(found.p_value), _note(row, found, have_value), row.group.runs,
        row.against,
    )  # fmt: skip


def _note(row: Row, found: Difference, have_value: Sequence[Measured]) -> str:
    parts = [row.note] if row.note else []
    reasons = dict.fromkeys(each.missing for each in row.measured if each.missing)
    if reasons:
        missing = len(row.measured) - len(have_value)
        parts.append(("not measured: " if not have_value else f"{missing} without a value: ") + "; ".join(reasons))
    if row.group.is_one_model and have_value:
        over = f"its interval is over {have_value[0].over}, not adjusted" if have_value[0].over else "no interval"
        parts.append(f"one model: {over}; it can refute the claim, not support it")
    elif have_value and found.count < LEAST_FOR_A_CLAIM:
        parts.append(f"{found.count} of at least {LEAST_FOR_A_CLAIM} seeds")
    return "; ".join(parts)
