"""From numbers of single models to findings: repetition over seeds, and what one model alone may say.

Models of one analysis that differ in their seed are repetitions: a number is taken of each model first, then the
intervals go over seeds (protocol, 4). A model without a seed, as a pretrained one, is no repetition of anything. Its
own interval, over its heads, layers or texts, can refute a general claim, for it is a counterexample, but not support
one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from natattn.reproduce.judges import reading
from natattn.reproduce.results import AnalysisResult, Estimate, Finding
from natattn.statistics.paired import LEAST_FOR_A_CLAIM, Difference, Verdict, differences_of, mean, verdict

Rule = Callable[[Difference, bool], Verdict]  # of a difference, and whether nothing is missing


@dataclass(frozen=True)
class Measured:
    """A number of one model.

    Attributes:
        low, high: its own 95 % interval; nan where there is none.
        over: what that interval is over, such as "12 heads".
        missing: why there is no number, where there is none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    over: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Group:
    """Models that differ in their seed alone; or one model without a seed.

    Attributes:
        label: what they are, for ``Finding.where``; with the steps where an analysis was made at several.
    """

    label: str
    members: tuple[AnalysisResult, ...]

    @property
    def steps(self) -> int | None:
        """How long they were trained."""
        return self.members[0].steps

    @property
    def is_one_model(self) -> bool:
        """Whether no seed can tell what another model would say."""
        return self.members[0].seed is None

    @property
    def runs(self) -> tuple[Path, ...]:
        """Of all members, in their order."""
        return tuple(dict.fromkeys(run for member in self.members for run in member.runs))


@dataclass(frozen=True)
class Row:
    """One question that is asked of a group.

    Attributes:
        measured: one for each member.
        against: what the claim is compared with: the verdict is of the number less this.
        complete: nothing else bars the verdict ``supported``.
        note: said first.
    """

    claim: str
    what: str
    group: Group
    measured: tuple[Measured, ...]
    unit: str = ""
    against: float = 0.0
    complete: bool = True
    note: str = ""


def groups(analyses: Sequence[AnalysisResult], section: str) -> list[Group]:
    """The analyses that have a section, by name, text and steps; those without a seed each by themselves."""
    found: dict[tuple[object, ...], list[AnalysisResult]] = {}
    steps: dict[tuple[str, str], set[int | None]] = {}
    for place, analysed in enumerate(analyses):
        if section in analysed.sections:
            alone = place if analysed.seed is None else None
            found.setdefault((analysed.name, analysed.where, analysed.steps, alone), []).append(analysed)
            steps.setdefault((analysed.name, analysed.where), set()).add(analysed.steps)
    result = []
    for members in found.values():
        first = members[0]
        several = len(steps[first.name, first.where]) > 1 and first.steps is not None
        result.append(Group(f"{first.where}, {first.steps:,} steps" if several else first.where, tuple(members)))
    return result


def by_seed(group: Group, values: Sequence[float]) -> list[float]:
    """The mean of every seed that has a value."""
    seeds: dict[int | None, list[float]] = {}
    for member, value in zip(group.members, values, strict=True):
        if math.isfinite(value):
            seeds.setdefault(member.seed, []).append(value)
    return [mean(of_seed) for of_seed in seeds.values()]


def estimate_of(group: Group, measured: Sequence[Measured]) -> Estimate:
    """For a table: the mean over seeds with its 95 % t interval, or a model's own; not adjusted."""
    if group.is_one_model:
        return Estimate(measured[0].value, measured[0].low, measured[0].high)
    return Estimate.of_mean(by_seed(group, [each.value for each in measured]))


def mean_cell(group: Group, rows: Sequence[reading.Row], heading: str) -> Estimate:
    """As ``estimate_of``, of the numbers under a heading; a row for each member."""
    return estimate_of(group, [Measured(reading.number(row, heading)) for row in rows])


def one_sided(claimed: Literal["below", "above"], indifference: float) -> Rule:
    """Protocol 7 for a claim that a number is below or above what it is compared with."""

    def decide(difference: Difference, complete: bool) -> Verdict:
        if any(map(math.isnan, difference.interval)):
            return "inconclusive"
        return verdict(difference, indifference=indifference, claimed=claimed, complete=complete)

    return decide


def near(tolerance: float) -> Rule:
    """For a claim that a number is about another, our definition: it differs by at most ``tolerance``.

    ``supported`` where the whole interval is within, ``refuted`` where the whole interval is outside. An interval that
    reaches over the edge says neither.
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
    """A finding for every row: Holm-adjusted over those that are over seeds, the own interval for single models."""
    over_seeds = [row for row in rows if not row.group.is_one_model]
    samples = [[value - row.against for value in by_seed(row.group, _numbers(row))] for row in over_seeds]
    differences = dict(zip(map(id, over_seeds), differences_of(samples), strict=True))
    return [_finding(study, row, differences.get(id(row)), rule) for row in rows]


def _finding(study: str, row: Row, difference: Difference | None, rule: Rule) -> Finding:
    known = [each for each in row.measured if math.isfinite(each.value)]
    if difference is None:
        own = row.measured[0]
        interval = own.low - row.against, own.high - row.against
        found = Difference(own.value - row.against, 1, interval, math.nan, None)
        # Its count is not of seeds, so that their least number does not bar it; support is barred.
        said = rule(replace(found, count=LEAST_FOR_A_CLAIM), False)
    else:
        found = difference
        said = rule(found, row.complete and len(known) == len(row.measured))
    return Finding(
        row.claim, study, row.what, row.group.label, _shifted(found, row.against), row.unit,
        found.count if known else 0, said, reading.known(found.p_value), _note(row, found, known), row.group.runs,
        row.against,
    )  # fmt: skip


def _shifted(found: Difference, by: float) -> Estimate:
    return Estimate(found.mean + by, found.interval[0] + by, found.interval[1] + by)


def _note(row: Row, found: Difference, known: Sequence[Measured]) -> str:
    parts = [row.note] if row.note else []
    reasons = dict.fromkeys(each.missing for each in row.measured if each.missing)
    if reasons:
        missing = len(row.measured) - len(known)
        parts.append(("not measured: " if not known else f"{missing} without a value: ") + "; ".join(reasons))
    if row.group.is_one_model and known:
        over = f"its interval is over {known[0].over}, not adjusted" if known[0].over else "no interval"
        parts.append(f"one model: {over}; it can refute the claim, not support it")
    elif known and found.count < LEAST_FOR_A_CLAIM:
        parts.append(f"{found.count} of at least {LEAST_FOR_A_CLAIM} seeds")
    return "; ".join(parts)


def _numbers(row: Row) -> list[float]:
    return [each.value for each in row.measured]
