"""Claims F1, F3 and F4, by errors against the exact attention-Fisher and by spectra (section ``fisher``).

All in score space per head, F = mean_i (diag(a_i) − a_i a_iᵀ):
F1, F ≈ E[A Aᵀ]. Error: min over c of ‖c·A Aᵀ − F‖/‖F‖, the scale that is best for the claim; ≈ means below ``ABOUT``,
our definition. Over the keys (AᵀA/L, the only reading whose rows and columns are F's) and as printed. And against
diag(mean a), which knows no products of attention at all: the claim says nothing if that is nearer.
F3, F⁻¹ ≈ I + A. The same error of the damped inverse, at the damping declared in the section, and against I alone.
F4, better conditioning. log(λ_max/mean after preconditioning) − log(before), of the damped Fisher of W_Q, for the
Kronecker product of ``fa_adam``.
Steps are rows: what holds of an untrained model need not hold of a trained one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from natattn.analysis.fisher_errors import IDENTITY, IDENTITY_AND_PATTERN, KEY_GRAM, KRONECKER, MARGINAL, QUERY_GRAM
from natattn.analysis.sections.fisher_parts import CLAIMED_DAMPING
from natattn.analysis.verdicts import (
    AnalysisResult,
    Group,
    Measured,
    Row,
    Rule,
    findings_of,
    groups,
    one_sided,
    over_seeds,
)
from natattn.report.table import Badge, Cell, Finding, StudyTable
from natattn.reproduce.judges import reading
from natattn.reproduce.judges.reading import bounds, mean_cell, number, row_of, rows_of

ABOUT = 0.1
INDIFFERENCE = 0.01  # of errors, in units of the Fisher's norm
CONDITIONING_INDIFFERENCE = 0.05  # of the logarithm of λ_max / mean: 5 %
ERROR = "error at best scale"
_SECTION = "fisher"
_SCORE, _INVERSE, _CONDITIONED = "in score space", "of the inverse", "preconditioner"
# First heading of a table, and what its rows approximate.
_SPACES = {
    _SCORE: "F, score space",
    _INVERSE: "(F + λI)⁻¹, score space",
    "of the attention-Fisher of W_Q": "attention-Fisher of W_Q",
    "of the true Fisher of W_Q": "the model's own Fisher of W_Q",
}


@dataclass(frozen=True)
class _Question:
    claim: str
    what: str
    read: Callable[[AnalysisResult], Measured]
    rule: Rule
    against: float = 0.0
    unit: str = "of the norm"


def judge_fisher(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Every question of every kind of models and step; Holm-adjusted over the rows of one claim."""
    found = groups(analyses, _SECTION)
    findings: list[Finding] = []
    for claim in ("F1", "F3", "F4"):
        asked = [question for question in _questions() if question.claim == claim]
        rows = [
            Row(claim, q.what, group, tuple(map(q.read, group.members)), q.unit, q.against)
            for q in asked for group in found
        ]  # fmt: skip
        findings += findings_of(study, rows, asked[0].rule)  # one rule for a claim
    tables = [_error_table(found), _conditioning_table(found), _verdict_table(findings)]
    return findings, [table for table in tables if table.rows]


def _questions() -> Iterator[_Question]:
    rule = one_sided("below", INDIFFERENCE)
    for name, words in ((KEY_GRAM, "A Aᵀ over the keys"), (QUERY_GRAM, "A Aᵀ as printed")):
        what = f"error of {words} as the Fisher (claimed: below {ABOUT:g})"
        yield _Question("F1", what, _error_of(_SCORE, name), rule, ABOUT)
    yield _Question(
        "F1", "error of A Aᵀ over the keys − error of diag(mean a) (claimed: below 0)",
        _gap_of(_SCORE, KEY_GRAM, MARGINAL, "gap to diag(mean a)", "low of the gap", "high of the gap"), rule,
    )  # fmt: skip
    at = f"at λ = {CLAIMED_DAMPING:g} mean eigenvalues"
    yield _Question(
        "F3", f"error of I + A as (F + λI)⁻¹ {at} (claimed: below {ABOUT:g})",
        _error_of(_INVERSE, IDENTITY_AND_PATTERN), rule, ABOUT,
    )  # fmt: skip
    yield _Question(
        "F3", f"error of I + A − error of I {at} (claimed: below 0)",
        _gap_of(_INVERSE, IDENTITY_AND_PATTERN, IDENTITY, "gap to the identity", "low", "high"), rule,
    )  # fmt: skip
    yield _Question(
        "F4", "log(λ_max/mean) of W_Q's damped Fisher, after the Kronecker product − before (claimed: below 0)",
        _conditioning_of(KRONECKER), one_sided("below", CONDITIONING_INDIFFERENCE), unit="",
    )  # fmt: skip


def _row_of(analysed: AnalysisResult, space: str, name: str) -> reading.Row:
    """That of the declared damping in the table of the inverse, which has three."""
    if space == _INVERSE:
        return row_of(analysed, _SECTION, space, name, **{"λ": CLAIMED_DAMPING})
    return row_of(analysed, _SECTION, space, name)


def _error_of(space: str, name: str) -> Callable[[AnalysisResult], Measured]:
    """The error, mean over heads, with its interval over these where the model is alone."""

    def read(analysed: AnalysisResult) -> Measured:
        row = _row_of(analysed, space, name)
        value = number(row, ERROR)
        if math.isnan(value):
            return Measured(math.nan, missing=f"the section has no {ERROR} of {name}")
        if space == _SCORE and "heads" in row:
            return Measured(value, *bounds(row), over=f"{number(row, 'heads'):.0f} heads")
        # error = √(1 − cosine²), which falls with the cosine: the range of heads is known from theirs.
        low, high = (_error_at(number(row, end)) for end in ("greatest", "least"))
        return Measured(value, low, high, over="heads, from the best to the worst of them")

    return read


def _error_at(cosine: float) -> float:
    return math.nan if math.isnan(cosine) else math.sqrt(1 - min(1.0, max(0.0, cosine)) ** 2)


def _gap_of(
    space: str, name: str, other: str, heading: str, low: str, high: str
) -> Callable[[AnalysisResult], Measured]:
    """What one error is above another, paired by head; of analyses kept before, the difference of the means."""

    def read(analysed: AnalysisResult) -> Measured:
        row, beside = _row_of(analysed, space, name), _row_of(analysed, space, other)
        value = number(row, heading) if heading in row else number(row, ERROR) - number(beside, ERROR)
        if math.isnan(value):
            return Measured(math.nan, missing=f"the section has no errors of {name} and {other}")
        if heading not in row:
            return Measured(value)
        return Measured(value, number(row, low), number(row, high), over=f"{number(row, 'heads'):.0f} heads")

    return read


def _conditioning_of(name: str) -> Callable[[AnalysisResult], Measured]:
    """Mean over heads of the logarithm of λ_max/mean, after less before; kept before, of the means over heads."""

    def read(analysed: AnalysisResult) -> Measured:
        row, plain = _row_of(analysed, _CONDITIONED, name), _row_of(analysed, _CONDITIONED, IDENTITY)
        heading = "log ratio to the identity"
        if heading in row:
            found = Measured(number(row, heading), *bounds(row), over=f"{number(row, 'heads'):.0f} heads")
        else:
            after, before = number(row, "λ_max / mean"), number(plain, "λ_max / mean")
            found = Measured(math.log(after / before) if after > 0 and before > 0 else math.nan)
        if math.isnan(found.value):
            return Measured(math.nan, missing="the spectrum of W_Q's Fisher is not in the section")
        return found

    return read


def _error_table(found: Sequence[Group]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for group in found:
        for heading, space in _SPACES.items():
            names = {(row[heading], row.get("λ")): None for m in group.members for row in rows_of(m, _SECTION, heading)}
            for name, damping in names:
                others = {} if damping is None else {"λ": damping}
                own = [row_of(member, _SECTION, heading, name, **others) for member in group.members]
                at = "" if damping is None else f", λ = {damping:g}"
                rows.append((group.label, group.steps, space + at, name, *_numbers(group, own)))
                runs.append(group.runs)
    caption = (
        "‖c·approximation − exact‖/‖exact‖ (Frobenius) at the best c, and as it is; means over heads, then over seeds "
        "with 95 % t intervals (of one model over its heads), not adjusted. λ in units of the mean eigenvalue."
    )
    headings = ("models", "steps", "of", "approximation", "cosine", "error as it is", ERROR)
    return StudyTable("fisher_errors", "Approximation error", caption, headings, tuple(rows), tuple(runs))


def _numbers(group: Group, own: Sequence[reading.Row]) -> Iterator[Cell]:
    """Cosine, error as it is and at the best scale."""
    for name in ("cosine", "error as it is", ERROR):
        ends = [bounds(row) if name == ERROR and "of the inverse" not in row else reading.UNKNOWN for row in own]
        estimate = over_seeds(group, [Measured(number(r, name), *e) for r, e in zip(own, ends, strict=True)])
        yield None if math.isnan(estimate.value) else estimate


def _conditioning_table(found: Sequence[Group]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for group in found:
        names = {row[_CONDITIONED]: None for m in group.members for row in rows_of(m, _SECTION, _CONDITIONED)}
        for name in names:
            own = [row_of(member, _SECTION, _CONDITIONED, name) for member in group.members]
            largest, evenness = (
                mean_cell(group, own, heading) for heading in ("λ_max / mean", "evenness: mean² / mean square")
            )
            ratio = over_seeds(group, [_conditioning_of(str(name))(member) for member in group.members])
            rows.append((group.label, group.steps, name, largest, ratio, evenness))
            runs.append(group.runs)
    caption = (
        "The damped attention-Fisher of W_Q after preconditioning, on other sequences than the preconditioner is from. "
        "λ_max / mean and evenness are 1 where all eigenvalues are equal. Means over heads, then over seeds with 95 % "
        "t intervals, not adjusted."
    )
    headings = ("models", "steps", "preconditioner", "λ_max / mean", "log ratio to none", "evenness")
    return StudyTable("conditioning", "Conditioning", caption, headings, tuple(rows), tuple(runs))


def _verdict_table(findings: Sequence[Finding]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = [
        (f.claim, f.where, f.what, f.estimate, f.p_value, f.count, Badge(f.verdict), f.note) for f in findings
    ]
    caption = (
        f"≈ means an error below {ABOUT:g} of the norm at the best scale, our definition. Intervals over seeds are "
        "Holm-adjusted over the rows of a claim."
    )
    headings = ("claim", "models", "measured", "estimate", "p", "seeds", "verdict", "note")
    runs = tuple(finding.runs for finding in findings)
    return StudyTable("fisher_verdicts", "What the errors say", caption, headings, tuple(rows), runs)
