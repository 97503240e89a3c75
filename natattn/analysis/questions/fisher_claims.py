"""The section and the verdicts of claims F1, F3 and F4, from the result of ``fisher``.

F1, F ≈ E[A Aᵀ]: the error of A Aᵀ at the best scale, where ≈ means below ``ABOUT`` by our definition. Over the keys
(AᵀA/L, the only reading with the rows and columns of F) and as printed; also against diag(mean a), which has no product
of patterns at all. F3, F⁻¹ ≈ I + A: the same error of the damped inverse at the declared damping, and against I alone.
F4, better conditioning: log(λ_max/mean) after the Kronecker product of ``fa_adam`` minus before. Training steps are
separate rows, because a trained model may differ from an untrained one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from natattn.analysis.fisher_conditioning import DAMPING
from natattn.analysis.fisher_errors import (
    DIAGONAL,
    EXACT,
    FITTED,
    IDENTITY,
    IDENTITY_AND_PATTERN,
    INPUT,
    KEY_GRAM,
    KFAC,
    KRONECKER,
    MARGINAL,
    OWN_DIAGONAL,
    QUERY_GRAM,
)
from natattn.analysis.frame import Question
from natattn.analysis.questions.fisher import (
    CLAIMED_DAMPING,
    DRAWS,
    ROWS,
    FisherErrors,
    Likeness,
    OfInverse,
    OfScores,
    Preconditioned,
    QuerySpace,
    ScoreSpace,
    TrueFisher,
    measure,
    top_count,
)
from natattn.analysis.subject import reads_text
from natattn.analysis.verdicts import (
    AnalysisResult,
    Group,
    Measured,
    Row,
    findings_of,
    groups,
    one_sided,
    over_seeds,
)
from natattn.report import figures
from natattn.report.section import HeadMap, Picture, Section, Table, head_map, interval_text, shown, table
from natattn.report.table import Badge, Cell, Finding, StudyTable

ABOUT = 0.1
INDIFFERENCE = 0.01  # of errors, in units of the Fisher's norm
CONDITIONING_INDIFFERENCE = 0.05  # of the logarithm of λ_max / mean: 5 %
MEASURES = ("cosine", "least", "greatest", "error as it is", "error at best scale")


def section(result: FisherErrors) -> Section:
    """Show the errors, the head maps, and the spectra."""
    score, query, true = result.score, result.query, result.true
    findings = [*_score_sentences(score), _inverse_sentence(score)]
    tables, maps = _score_tables(score), [
        head_map(f"cosine of {words}", score.layers, score.cosines[name])
        for words, name in (("A Aᵀ over the keys", KEY_GRAM), ("diag(mean a)", MARGINAL))
    ]  # fmt: skip
    inverse = score.claimed_inverse
    bars: list[tuple[str, list[tuple[str, Likeness]]]] = [
        ("Score space (F1)", list(score.approximations.items())),
        (f"Inverse, λ = {CLAIMED_DAMPING:g} (F3)", list(inverse.approximations.items())),
    ]
    curves = [("Score space", {f"layer {layer}": spectrum for layer, spectrum in score.spectra.items()})]
    if isinstance(query, QuerySpace):
        findings.append(_query_sentence(query))
        rows = [(name, *_cells(found)) for name, found in query.approximations.items()]
        tables.append(table(("of the attention-Fisher of W_Q", *MEASURES), rows))
        maps.append(head_map("cosine of the Kronecker product", query.layers, query.cosines))
        bars.append(("W_Q, exact attention-Fisher (F1)", list(query.approximations.items())))
        findings += _add_true(query, true, tables, maps, bars)
        findings.append(_conditioning_sentence(result.conditioning))
        if isinstance(result.conditioning, dict):
            tables.append(_conditioning_rows(result.conditioning))
            spectra = {
                "none" if name == IDENTITY else name: found.spectrum for name, found in result.conditioning.items()
            }
            curves.append(("W_Q, damped, by preconditioner", spectra))
    else:
        findings.append(query)
    pictures = [_error_picture(bars)]
    if score.spectra:
        pictures.append(_spectrum_picture(curves))
    return Section(
        "fisher", "Fisher information", tuple(findings), tuple(tables), tuple(maps), tuple(pictures)
    )  # fmt: skip


def _add_true(
    query: QuerySpace, true: TrueFisher | str, tables: list[Table], maps: list[HeadMap],
    bars: list[tuple[str, list[tuple[str, Likeness]]]],
) -> list[str]:  # fmt: skip
    """Add what concerns the model's own Fisher, and return its sentence."""
    if isinstance(true, str):
        return [true]
    found = true.approximations
    text = {name: f"{shown(value.cosine)} {interval_text(*value.interval)}" for name, value in found.items()}
    headings = ("of the true Fisher of W_Q", *MEASURES[:3], "95 % interval of the mean", MEASURES[-1])
    rows = [
        (name, *_cells(value)[:3], interval_text(*value.interval), value.best_scale_error)
        for name, value in found.items()
    ]
    tables.append(table(headings, rows))
    maps.append(head_map("cosine of the attention-Fisher with the true", query.layers, true.cosines))
    bars.append(("W_Q, the model's true Fisher (F1)", list(found.items())))
    return [
        f"F1, the model's true Fisher of W_Q, from labels drawn from its predictions ({true.sequences} sequences, "
        f"{DRAWS} draws): the exact attention-Fisher has a cosine of {text[EXACT]} with it, the Kronecker product "
        f"{text[KRONECKER]}, the diagonal {text[DIAGONAL]}, the identity {text[IDENTITY]}; "
        f"K-FAC's own product {text[KFAC]}, its own diagonal {text[OWN_DIAGONAL]}: means over heads, "
        "95 % intervals over sequences."
    ]


def _score_tables(score: ScoreSpace) -> list[Table]:
    headings = (
        "in score space", *MEASURES, f"overlap of top {top_count(score.length)}", "heads", "low", "high",
        "gap to diag(mean a)", "low of the gap", "high of the gap",
    )  # fmt: skip
    rows = [
        (name, *_cells(found), math.nan if found.overlap is None else found.overlap[0], found.heads, *found.interval,
         found.gap, *found.gap_interval)
        for name, found in score.approximations.items()
    ]  # fmt: skip
    inverse_headings = ("λ", "of the inverse", *MEASURES, "mean c", "gap to the identity", "heads", "low", "high")
    inverse_rows = [
        (inverse.damping, name, *_cells(found), found.coefficient, found.gap, found.heads, *found.gap_interval)
        for inverse in score.inverses
        for name, found in inverse.approximations.items()
    ]
    return [table(headings, rows), table(inverse_headings, inverse_rows)]


def _cells(found: Likeness) -> tuple[float, float, float, float, float]:
    """Return the cells under ``MEASURES``."""
    return found.cosine, found.least, found.greatest, found.error, found.best_scale_error


def _score_sentences(score: ScoreSpace) -> list[str]:
    claimed, printed, marginal = (score.approximations[name] for name in (KEY_GRAM, QUERY_GRAM, MARGINAL))
    k = top_count(score.length)
    return [
        f"F1, score space: A Aᵀ over the keys is {claimed.words} approximation of the mean Fisher: its error at "
        f"the best scale is {claimed.error_text} of the Fisher's norm, its cosine "
        f"{claimed.cosine_text}, means and range over heads. As printed, queries × queries, it is "
        f"{printed.words} one: {printed.error_text}.",
        f"diag(mean a) alone is {marginal.words} approximation: {marginal.error_text}; A Aᵀ over "
        f"the keys is closer in {score.closer} of {score.heads} heads. Exactly, F = diag(mean a) − AᵀA/L.",
        f"Of the space of the {k} largest eigenvalues A Aᵀ over the keys has {_overlap_text(claimed)}, "
        f"diag(mean a) {_overlap_text(marginal)}, a random space {shown(k / score.length)}.",
    ]


def _overlap_text(found: OfScores) -> str:
    return "—" if found.overlap is None else f"{shown(found.overlap[0])} {interval_text(*found.overlap[1:])}"


def _inverse_sentence(score: ScoreSpace) -> str:
    inverse = score.claimed_inverse
    claimed, alone, fitted = (inverse.approximations[name] for name in (IDENTITY_AND_PATTERN, IDENTITY, FITTED))
    return (
        f"F3: I + A is {claimed.words} approximation of (F + λI)⁻¹ at λ = "
        f"{CLAIMED_DAMPING:g} mean eigenvalues: error {claimed.error_text} at the best scale, that of I alone "
        f"{alone.error_text}; A makes it smaller in {score.inverse_closer} of {score.heads} heads. The best "
        f"coefficient of A gives {fitted.error_text}; it is negative in {score.negative} of {score.heads} heads."
    )


def _query_sentence(query: QuerySpace) -> str:
    product, diagonal, identity = (query.approximations[name] for name in (KRONECKER, DIAGONAL, IDENTITY))
    return (
        f"F1, W_Q ({query.heads} heads, {len(query.layers)} of {query.layer_count} layers, about {ROWS} query rows "
        f"each): the Kronecker product S ⊗ A is {product.words} approximation of the exact attention-Fisher: error "
        f"{product.error_text} at the best scale, cosine {product.cosine_text}. The diagonal has "
        f"a cosine of {diagonal.cosine_text}, the identity {identity.cosine_text}. W_K is left out."
    )


def _conditioning_sentence(found: dict[str, Preconditioned] | str) -> str:
    if isinstance(found, str):
        return found
    plain, product, side, diagonal = (
        f"{shown(of.largest)} {interval_text(of.least, of.greatest)}"
        for of in (found[name] for name in (IDENTITY, KRONECKER, INPUT, DIAGONAL))
    )
    return (
        f"F4, {found[IDENTITY].heads} heads: the largest eigenvalue of the damped attention-Fisher of W_Q is "
        f"{plain} times the mean one, after the Kronecker product "
        f"{product}, after its input side alone {side}, after the "
        f"diagonal {diagonal}. "
        f"Preconditioners are from other sequences, their damping is {DAMPING:g}."
    )


def _conditioning_rows(found: dict[str, Preconditioned]) -> Table:
    headings = (
        "preconditioner", "λ_max / mean", "least", "greatest", "evenness: mean² / mean square",
        "log ratio to the identity", "heads", "low", "high",
    )  # fmt: skip
    rows = [
        (name, of.largest, of.least, of.greatest, of.evenness, of.log_ratio, of.heads, *of.interval)
        for name, of in found.items()
    ]
    return table(headings, rows)


def _error_picture(bars: Sequence[tuple[str, Sequence[tuple[str, Likeness]]]]) -> Picture:
    data = [
        (title, name, found.best_scale_error, *found.error_range) for title, rows in bars for name, found in rows
    ]  # fmt: skip
    panels = [
        (title, [(name, (found.best_scale_error, *found.error_range)) for name, found in rows]) for title, rows in bars
    ]
    caption = (
        "Relative Frobenius error at the best scale: 0 is exact, 1 is no likeness. Bars are means over heads, whiskers "
        "go from the best head to the worst."
    )
    numbers = table(("space", "approximation", "mean", "least", "greatest"), data)
    return Picture("fisher_errors", caption, numbers, figures.bars(panels, x_label="relative error at the best scale"))


def _spectrum_picture(curves: Sequence[tuple[str, dict[str, tuple[float, ...]]]]) -> Picture:
    label = "eigenvalue / mean eigenvalue"
    panels = [
        (title, label, [(name, np.array(values)) for name, values in lines.items()]) for title, lines in curves
    ]  # fmt: skip
    data = [
        (title, name, rank, value)
        for title, lines in curves
        for name, values in lines.items()
        for rank, value in enumerate(values, start=1)
    ]
    caption = (
        "Eigenvalues of the mean Fisher in units of their mean: flat at 1 is perfectly conditioned. In score space "
        "means over heads and sequences; of W_Q the largest ones, geometric means over some heads."
    )
    picture = figures.lines_loglog(panels, x_label="rank of the eigenvalue", floor=1e-6)
    return Picture("fisher_spectra", caption, table(("space", "curve", "rank", label), data), picture)


@dataclass(frozen=True)
class _Test:
    """One number that a claim is tested by."""

    claim: str
    what: str
    read: Callable[[FisherErrors], Measured]
    against: float = 0.0
    indifference: float = INDIFFERENCE
    unit: str = "of the norm"


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Judge every test for every kind of models and step, Holm-adjusted over the rows of one claim."""
    models = groups(analyses, "fisher")
    findings: list[Finding] = []
    for claim in ("F1", "F3", "F4"):
        tests = [test for test in _tests() if test.claim == claim]
        rows = [
            Row(claim, test.what, group, tuple(map(test.read, group.results("fisher", FisherErrors))), test.unit,
                test.against)
            for test in tests for group in models
        ]  # fmt: skip
        findings += findings_of(study, rows, one_sided("below", tests[0].indifference))
    tables = [_error_table(models), _conditioning_table(models), _verdict_table(findings)]
    return findings, [table for table in tables if table.rows]


def _tests() -> Iterator[_Test]:
    for name, words in ((KEY_GRAM, "A Aᵀ over the keys"), (QUERY_GRAM, "A Aᵀ as printed")):
        what = f"error of {words} as the Fisher (claimed: below {ABOUT:g})"
        yield _Test("F1", what, partial(_score_error, name), ABOUT)
    yield _Test(
        "F1", "error of A Aᵀ over the keys − error of diag(mean a) (claimed: below 0)",
        lambda result: _gap(result.score.approximations[KEY_GRAM]),
    )  # fmt: skip
    at = f"at λ = {CLAIMED_DAMPING:g} mean eigenvalues"
    yield _Test("F3", f"error of I + A as (F + λI)⁻¹ {at} (claimed: below {ABOUT:g})", _inverse_error, ABOUT)
    yield _Test(
        "F3", f"error of I + A − error of I {at} (claimed: below 0)",
        lambda result: _gap(result.score.claimed_inverse.approximations[IDENTITY_AND_PATTERN]),
    )  # fmt: skip
    yield _Test(
        "F4", "log(λ_max/mean) of W_Q's damped Fisher, after the Kronecker product − before (claimed: below 0)",
        partial(_log_ratio, KRONECKER), 0.0, CONDITIONING_INDIFFERENCE, "",
    )  # fmt: skip


def _score_error(name: str, result: FisherErrors) -> Measured:
    found = result.score.approximations[name]
    return Measured(found.best_scale_error, *found.interval, over=f"{found.heads} heads")


def _inverse_error(result: FisherErrors) -> Measured:
    found = result.score.claimed_inverse.approximations[IDENTITY_AND_PATTERN]
    return Measured(found.best_scale_error, *found.error_range, over="heads, from the best to the worst of them")


def _gap(found: OfScores | OfInverse) -> Measured:
    return Measured(found.gap, *found.gap_interval, over=f"{found.heads} heads")


def _log_ratio(name: str, result: FisherErrors) -> Measured:
    if isinstance(result.conditioning, str):
        return Measured(math.nan, missing="the spectrum of W_Q's Fisher was not measured")
    found = result.conditioning[name]
    return Measured(found.log_ratio, *found.interval, over=f"{found.heads} heads")


def _errors(result: FisherErrors) -> dict[tuple[str, str], tuple[Measured, Measured, Measured]]:
    """Return cosine, error as it is, and error at the best scale by space and approximation."""
    spaces: list[tuple[str, dict[str, Likeness]]] = [("F, score space", {**result.score.approximations})]
    spaces += [
        (f"(F + λI)⁻¹, score space, λ = {inverse.damping:g}", {**inverse.approximations})
        for inverse in result.score.inverses
    ]
    if isinstance(result.query, QuerySpace):
        spaces.append(("attention-Fisher of W_Q", result.query.approximations))
    if isinstance(result.true, TrueFisher):
        spaces.append(("the model's own Fisher of W_Q", {**result.true.approximations}))
    return {
        (space, name): (
            Measured(found.cosine), Measured(found.error),
            _with_interval(found),
        )
        for space, approximations in spaces for name, found in approximations.items()
    }  # fmt: skip


def _with_interval(found: Likeness) -> Measured:
    low, high = found.interval if isinstance(found, OfScores) else (math.nan, math.nan)
    return Measured(found.best_scale_error, low, high)


def _error_table(models: Sequence[Group]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for group in models:
        by_model = [_errors(result) for result in group.results("fisher", FisherErrors)]
        for space, name in dict.fromkeys(key for errors in by_model for key in errors):
            present = [errors.get((space, name), (None,) * 3) for errors in by_model]
            estimates = [over_seeds(group, column) for column in zip(*present, strict=True)]
            cells = (None if math.isnan(estimate.value) else estimate for estimate in estimates)
            rows.append((group.label, group.steps, space, name, *cells))
            runs.append(group.runs)
    caption = (
        "‖c·approximation − exact‖/‖exact‖ (Frobenius) at the best c, and as it is; means over heads, then over seeds "
        "with 95 % t intervals (of one model over its heads), not adjusted. λ in units of the mean eigenvalue."
    )
    headings = ("models", "steps", "of", "approximation", "cosine", "error as it is", "error at best scale")
    return StudyTable("fisher_errors", "Approximation error", caption, headings, tuple(rows), tuple(runs))


def _conditioning_table(models: Sequence[Group]) -> StudyTable:
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for group in models:
        results = group.results("fisher", FisherErrors)
        by_model = [{} if isinstance(result.conditioning, str) else result.conditioning for result in results]
        for name in dict.fromkeys(name for conditioned in by_model for name in conditioned):
            present = [conditioned.get(name) for conditioned in by_model]
            largest, evenness = (
                over_seeds(group, [None if of is None else getattr(of, part) for of in present])
                for part in ("largest", "evenness")
            )
            ratio = over_seeds(group, [_log_ratio(name, result) for result in results])
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


QUESTION = Question(FisherErrors, measure, section, reads_text)
