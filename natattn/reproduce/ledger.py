"""From runs to verdicts: differences between a study's arms judged by the protocol, and findings sorted by claim."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, get_args

from natattn.analysis.differences import PAIRED_QUANTITIES
from natattn.report.table import Badge, Cell, Finding, Table, half_width
from natattn.report.writers import to_terminal
from natattn.reproduce.claims import CLAIMS, Claim
from natattn.reproduce.results import StudyResult, overall
from natattn.reproduce.study import Arm, ComparisonSettings, Metric, StudySettings, arms_of, placebos_of
from natattn.statistics.paired import Difference, Verdict, differences_of, excludes_zero, verdict

# (metric, corpus, arm, other, seed) → the difference arm − other; None if a run is missing or diverged.
Measure = Callable[[Metric, str, str, str, int], float | None]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NOT_MEASURED = "not measured"
_WIDTH_WITHOUT_TERMINAL = 160
_MOST_LINES = 8  # most lines about missing runs


@dataclass(frozen=True)
class Comparison:
    """One difference and its verdict.

    Attributes:
        comparison: the declaration that it answers; for the row of a placebo, that of its arm.
        arm, other: the difference is arm − other.
        missing: number of seeds without a difference.
        unbeaten: placebos of the arm whose interval does not exclude zero in the claimed direction.
        verdict: None for the difference to a placebo, which is only a part of another row's verdict.
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
        """The comparison in words."""
        quantity = PAIRED_QUANTITIES[self.comparison.metric]
        beyond = f", less {self.comparison.threshold:g} that the claim allows" if self.comparison.threshold else ""
        return f"{self.arm} − {self.other}: {quantity.title}{beyond}"


def judge(study: StudySettings, measure: Measure, leaky: Collection[tuple[str, str]] = ()) -> list[Comparison]:
    """Judge every comparison of the study on every corpus (protocol, 4 and 7).

    Comparisons of one corpus and metric are adjusted together. The difference of an arm to each of its placebos is a
    row of the same family: it must exclude zero too.

    Args:
        leaky: (corpus, arm) whose losses are no evidence; none of their comparisons is ``supported``.
    """
    arms = arms_of(study)
    return [
        row
        for corpus in study.corpora
        for metric in dict.fromkeys(comparison.metric for comparison in study.comparisons)
        for row in _judge_family(
            study,
            [
                comparison
                for comparison in study.comparisons
                if comparison.metric == metric
                and corpus in arms[comparison.arm].corpora
                and (comparison.corpora is None or corpus in comparison.corpora)
            ],
            arms, corpus, measure, leaky,
        )
    ]  # fmt: skip


def _judge_family(
    study: StudySettings, chosen: Sequence[ComparisonSettings], arms: dict[str, Arm], corpus: str, measure: Measure,
    leaky: Collection[tuple[str, str]],
) -> list[Comparison]:  # fmt: skip
    def placebos(comparison: ComparisonSettings) -> list[str]:
        return placebos_of(arms, comparison.arm) if comparison.placebos else []

    # By (arm, other, threshold): the comparisons, then each arm against its placebos, once. A claim's threshold does
    # not apply to placebos.
    rows: dict[tuple[str, str, float], ComparisonSettings] = {}
    for comparison in chosen:
        rows.setdefault((comparison.arm, comparison.baseline, comparison.threshold), comparison)
    for comparison in chosen:
        for placebo in placebos(comparison):
            rows.setdefault((comparison.arm, placebo, 0.0), comparison)
    samples, missing = [], {}
    for (arm, other, threshold), comparison in rows.items():
        values = [measure(comparison.metric, corpus, arm, other, seed) for seed in arms[arm].seeds]
        known = [value - threshold for value in values if value is not None and math.isfinite(value)]
        samples.append(known)
        missing[arm, other, threshold] = len(values) - len(known)
    differences = dict(zip(rows, differences_of(samples), strict=True))
    judged = []
    for name, comparison in rows.items():
        arm, other, _ = name
        said: Verdict | None = None
        unbeaten: tuple[str, ...] = ()
        if name == (comparison.arm, comparison.baseline, comparison.threshold):
            names = [(arm, placebo, 0.0) for placebo in placebos(comparison)]
            unbeaten = tuple(n[1] for n in names if not excludes_zero(differences[n], comparison.claimed))
            indifference = study.indifference if comparison.indifference is None else comparison.indifference
            said = verdict(
                differences[name],
                # A threshold already states what is negligible.
                indifference=0.0 if comparison.threshold else indifference,
                claimed=comparison.claimed,
                placebos=[differences[n] for n in names],
                complete=not any(missing[n] for n in (name, *names))
                and not any((corpus, a) in leaky for a in (arm, other)),
            )
        judged.append(Comparison(comparison, corpus, arm, other, differences[name], missing[name], unbeaten, said))
    return judged


def by_claim(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> list[tuple[Claim, tuple[Finding, ...]]]:
    """Return every claim in its order with its findings, of which there may be none.

    Raises: ValueError for a finding of a claim that the ledger does not have.
    """
    sorted_findings: dict[str, list[Finding]] = {claim: [] for claim in claims}
    for result in results:
        for finding in result.findings:
            if finding.claim not in sorted_findings:
                raise ValueError(f"study {result.name}: a finding of {finding.claim!r}, which the ledger does not have")
            sorted_findings[finding.claim].append(finding)
    return [(claim, tuple(sorted_findings[name])) for name, claim in claims.items()]


def claims_of(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> dict[str, Claim]:
    """Return the claims that these studies test or have findings of; for all studies, also untested claims."""
    names = {result.name for result in results}
    if names >= {claim.study for claim in claims.values()} - {""}:
        return dict(claims)
    measured = {finding.claim for result in results for finding in result.findings}
    return {name: claim for name, claim in claims.items() if claim.study in names or name in measured}


def standardised(finding: Finding) -> float:
    """Return the effect minus ``Finding.against``, in half-widths of its interval; nan without an interval.

    Beyond ±1, a symmetric interval excludes ``Finding.against``.
    """
    half = half_width(finding.estimate)
    return (finding.estimate.value - finding.against) / half if half > 0 else math.nan


def strongest(findings: Sequence[Finding]) -> Finding:
    """Return the finding that supports the verdict of all the most.

    Findings without a value, or with another verdict, are considered only if there are no others. The strongest has the
    largest ``standardised``. For ``refuted``, a finding without an interval (a counterexample) comes first; for
    ``no effect``, the one with the most repetitions. Of equals, the first.

    Raises: ValueError for no findings.
    """
    verdict_of_all = overall(findings)
    known = [finding for finding in findings if not math.isnan(finding.estimate.value)] or list(findings)
    candidates = [finding for finding in known if finding.verdict == verdict_of_all] or known

    def weight(finding: Finding) -> float:
        size = abs(standardised(finding))
        if verdict_of_all == "no effect":
            return float(finding.count)
        if math.isnan(size):
            return math.inf if verdict_of_all == "refuted" else -1.0
        return size

    return max(candidates, key=weight)


def tally(findings: Sequence[Finding]) -> str:
    """Return the number of findings with each verdict, such as "2 supported, 1 refuted"."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def ledger_table(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> Table:
    """Return a row for every finding, in the order of the claims; a claim without one is listed as not measured.

    Raises: as ``by_claim``.
    """
    rows: list[tuple[Cell, ...]] = []
    runs: list[tuple[Path, ...]] = []
    for claim, findings in by_claim(results, claims):
        head = (claim.id, claim.statement)
        if not findings:
            rows.append((*head, "", "", None, "", None, None, NOT_MEASURED, ""))
            runs.append(())
        for finding in findings:
            rows.append(
                (*head, finding.what, finding.where, finding.estimate, finding.unit, finding.count,
                 finding.p_value, Badge(finding.verdict), finding.note)
            )  # fmt: skip
            runs.append(finding.runs)
    headings = ("claim", "statement", "what", "where", "effect", "unit", "n", "p", "verdict", "note")
    caption = (
        "Every measurement that bears on a claim, with the interval that its verdict belongs to (95 %, simultaneous "
        "within its study's table); n counts seeds or models; p is adjusted as that table says."
    )
    return Table("ledger", "Claims and what was measured", caption, headings, tuple(rows), tuple(runs))


def summary_table(results: Sequence[StudyResult], claims: Mapping[str, Claim]) -> Table:
    """Return a row for every claim: the verdict of all measurements together, and the strongest of them.

    Raises: as ``by_claim``.
    """
    rows: list[tuple[Cell, ...]] = []
    runs: list[tuple[Path, ...]] = []
    for claim, findings in by_claim(results, claims):
        if not findings:
            rows.append((claim.id, claim.statement, NOT_MEASURED, "", "", None, "", None))
            runs.append(())
            continue
        first = strongest(findings)
        rows.append(
            (claim.id, claim.statement, Badge(overall(findings)), tally(findings), f"{first.what} ({first.where})",
             first.estimate, first.unit, first.count)
        )  # fmt: skip
        runs.append(first.runs)
    headings = ("claim", "statement", "verdict", "findings", "the strongest", "its effect", "unit", "n")
    caption = (
        "The verdict is that of all measurements of a claim where they agree; refuted where one refutes it and none "
        "supports it; else inconclusive. The strongest is the one of that verdict whose effect is the most half-widths "
        "of its interval from what is claimed; a counterexample comes before, and for no effect repetitions count."
    )
    return Table("claims", "The claims", caption, headings, tuple(rows), tuple(runs))


def print_results(results: Sequence[StudyResult], *, stream: TextIO) -> None:
    """Print one study's tables and its part of the ledger, or a summary of several studies; then missing runs."""
    from rich.console import Console

    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(file=stream, width=width, markup=False, highlight=False)
    claims = claims_of(results, CLAIMS)
    if len(results) == 1:
        for table in results[0].tables:
            console.print(to_terminal(table))
            console.print()
        console.print(to_terminal(ledger_table(results, claims)))
    else:
        console.print(to_terminal(summary_table(results, claims)))
    for result in results:
        lines = [*result.missing, *(f"failed: {failure}" for failure in result.failures)]
        for line in lines[:_MOST_LINES]:
            console.print(line, soft_wrap=True)
        if len(lines) > _MOST_LINES:
            console.print(f"and {len(lines) - _MOST_LINES} more lines of that kind: see the report")
