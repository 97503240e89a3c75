"""Numerical checks of the theorems: P1 to P6 and D1 to D5' of the ledger, and F3.

A check goes through cases in float64, from the smallest to the largest, structured ones first: uniform patterns,
identical rows, one-hot rows, aligned weights, then random ones. The excess of a case, (left − right) / scale, is above
0 if the case breaks the statement. One case with an excess above rounding refutes the statement, and the first such
case is the smallest counterexample. A search cannot prove: without a counterexample a statement counts as supported if
a proof is given, and else as inconclusive.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from natattn.analysis.frame import Question
from natattn.analysis.settings import AnalyzeSettings
from natattn.analysis.subject import Subject
from natattn.analysis.verdicts import AnalysisResult
from natattn.attention.types.natural_gradient import natural_score_gradient
from natattn.fisher.decomposition import attention_fisher, score_fisher
from natattn.report.section import Advance, Section, table
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.statistics.paired import Verdict

Case = tuple[dict[str, Tensor], float]  # the tensors of a case, and its excess
ROUNDING = 1e-9
CLAIMS = ("P1", "P2", "P3", "P4", "P5", "P6", "D3'", "D4'", "D5'")
_LONGEST = 300  # characters of a counterexample in a note


@dataclass(frozen=True)
class Check:
    """The outcome of one statement.

    Attributes:
        claim: its row of the ledger; a word after it distinguishes readings of one row.
        statement: the formula, with the reading that was checked.
        worst: the largest relative excess over all cases; at most 0 if the statement always held.
        cases: number of cases.
        note: the reason, or what is known beyond the cases.
        counterexample: the tensors of the smallest case that breaks the statement, as Python code; empty without one.
    """

    claim: str
    statement: str
    worst: float
    cases: int
    note: str
    counterexample: str

    @property
    def is_refuted(self) -> bool:
        """True if a case breaks the statement."""
        return bool(self.counterexample)


@dataclass(frozen=True)
class Theorems:
    """The result: a check of every statement."""

    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Theorem:
    statement: str
    cases: Callable[[torch.Generator], Iterator[Case]]
    note: str


def measure(subject: Subject, settings: AnalyzeSettings, advance: Advance) -> Theorems:
    """Check all statements; the result is the same for every subject."""
    advance(len(subject.tokens))
    return Theorems(tuple(check_theorem(claim, seed=settings.seed) for claim in THEOREMS))


def check_theorem(claim: str, *, seed: int = 0) -> Check:
    """Go through the cases of one statement.

    Raises: KeyError for a claim that is not in ``THEOREMS``.
    """
    theorem = THEOREMS[claim]
    worst, count, smallest = -math.inf, 0, ""
    for tensors, excess in theorem.cases(torch.Generator().manual_seed(seed)):
        count += 1
        worst = max(worst, excess)
        if not smallest and excess > ROUNDING:
            smallest = "\n".join(
                f"{name} = torch.tensor({value.tolist()}, dtype=torch.float64)" for name, value in tensors.items()
            )
    return Check(claim, theorem.statement, worst, count, theorem.note, smallest)


def section(result: Theorems) -> Section:
    """Show every check with its counterexample."""
    rows = [
        (c.claim, c.statement, "refuted" if c.is_refuted else "supported", c.worst, c.cases, c.note, c.counterexample)
        for c in result.checks
    ]
    refuted = [check.claim for check in result.checks if check.is_refuted]
    finding = (
        f"{len(refuted)} of {len(result.checks)} statements are refuted by a counterexample: {', '.join(refuted)}."
    )
    headings = ("claim", "statement", "verdict", "worst excess", "cases", "why", "smallest counterexample")
    return Section("theorems", "Theorems", (finding,), (table(headings, rows),))


def verdict(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Judge every reading of every theorem; one counterexample of any search is enough."""
    checks: dict[str, tuple[Check, AnalysisResult]] = {}
    for analysed in analyses:
        if "theorems" in analysed.results:
            for check in analysed.result("theorems", Theorems).checks:
                is_new = check.claim not in checks or (check.is_refuted and not checks[check.claim][0].is_refuted)
                if check.claim.split(" ")[0] in CLAIMS and is_new:
                    checks[check.claim] = check, analysed
    if not checks:
        return [], []
    findings = [_finding(study, check, analysed) for check, analysed in checks.values()]
    rows: list[tuple[Cell, ...]] = [
        (name, finding.what, Badge(finding.verdict), finding.estimate.value, finding.count, finding.note)
        for name, finding in zip(checks, findings, strict=True)
    ]
    caption = (
        "By a search over random and special patterns in float64: refuted where a case breaks the statement, the "
        "smallest being printed; supported where there is a proof; else inconclusive, as no search can prove. Excess: "
        "(left − right) / scale, above 0 where the statement fails."
    )
    headings = ("theorem", "as it was checked", "verdict", "worst excess", "cases", "why, and the counterexample")
    runs = tuple(finding.runs for finding in findings)
    return findings, [StudyTable("theorems", "Theorems by number", caption, headings, tuple(rows), runs)]


def _finding(study: str, check: Check, analysed: AnalysisResult) -> Finding:
    outcome: Verdict = "refuted" if check.is_refuted else "supported" if check.claim in PROVED else "inconclusive"
    if check.is_refuted:
        short = re.sub(r"torch\.tensor\((.*?), dtype=torch\.float64\)", r"\1", check.counterexample)
        short = short.replace("\n", ", ")
        reason = f"smallest counterexample: {short if len(short) <= _LONGEST else f'{short[:_LONGEST]}…'}"
    else:
        reason = f"no counterexample in {check.cases} cases"
    return Finding(
        check.claim.split(" ")[0], study, check.statement, "any pattern, float64", Estimate(check.worst),
        "relative excess", check.cases, outcome, None, f"{check.note}; {reason}", analysed.runs,
    )  # fmt: skip


def _patterns(generator: torch.Generator) -> Iterator[Tensor]:
    """Yield patterns [L, L] with rows on the simplex: uniform, causal uniform, identity, identical rows, random."""
    for length in range(2, 7):
        yield torch.full((length, length), 1 / length, dtype=torch.float64)
        yield torch.ones(length, length, dtype=torch.float64).tril() / torch.arange(1, length + 1)[:, None]
        yield torch.eye(length, dtype=torch.float64)
        yield torch.eye(length, dtype=torch.float64)[:1].expand(length, -1).clone()
        for scale in (0.3, 3.0):
            yield torch.softmax(scale * _normal(generator, length, length), -1)


def _rows(generator: torch.Generator) -> Iterator[Tensor]:
    """Yield single rows of attention."""
    for pattern in _patterns(generator):
        yield pattern[-1]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _over(left: float, right: float) -> float:
    """Return the relative excess of left over right."""
    return (left - right) / max(abs(right), 1e-12)


def _energy_bound(generator: torch.Generator, *, whole: bool) -> Iterator[Case]:
    """P1, first with aligned inputs and rank-one weights, then with random ones."""
    for heads, head_dim in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 2)):
        width = heads * head_dim
        for aligned in (True, False):
            states = torch.eye(1, width, dtype=torch.float64) if aligned else _normal(generator, 3, width)
            weights = []
            for _ in range(2):
                weight = torch.zeros(heads, width, head_dim, dtype=torch.float64)
                weight[:, 0, 0] = 1.0
                weight = weight if aligned else _normal(generator, heads, width, head_dim)
                norm = weight.norm() if whole else weight.flatten(1).norm(dim=1)[:, None, None]
                weights.append(weight / norm * math.sqrt(width))
            query, key = states @ weights[0], states @ weights[1]
            energy = query @ key.mT / math.sqrt(head_dim)
            bound = width * heads * float(states.norm()) ** 4
            yield {"X": states, "W_Q": weights[0], "W_K": weights[1]}, _over(float(energy.square().sum()), bound)


def _scale_invariance(generator: torch.Generator) -> Iterator[Case]:
    """P2 at α = 2, with W_Q = W_K = 1."""
    for length, width in ((2, 1), (2, 2), (4, 3)):
        states = _normal(generator, length, width)
        patterns = [
            torch.softmax((scale * states) @ (scale * states).mT / math.sqrt(width), -1) for scale in (1.0, 2.0)
        ]
        yield {"X": states, "alpha": torch.tensor(2.0)}, float((patterns[0] - patterns[1]).abs().max())


def _least_eigenvalue(generator: torch.Generator) -> Iterator[Case]:
    for pattern in _patterns(generator):
        least = float(torch.linalg.eigvalsh(pattern @ pattern.mT)[0])
        yield {"A": pattern}, 1 - least * len(pattern)


def _convergence(generator: torch.Generator) -> Iterator[Case]:
    """P4, for gradient descent on ½ xᵀ A Aᵀ x from the eigenvector with the least eigenvalue."""
    rate, steps = 0.5, 50
    for pattern in _patterns(generator):
        hessian = pattern @ pattern.mT
        vectors = torch.linalg.eigh(hessian)[1]
        state = vectors[:, 0]
        for _ in range(steps):
            state = state - rate * (hessian @ state)
        bound = (1 - rate / len(pattern)) ** steps
        yield {"A": pattern, "x": vectors[:, 0]}, _over(float(state.norm()), bound)


def _information(generator: torch.Generator, *, of_key: bool) -> Iterator[Case]:
    """P5, for equally likely inputs with one pattern each."""
    for length, inputs in ((2, 2), (2, 3), (3, 4), (3, 9)):
        rows = torch.softmax(_normal(generator, inputs, length), -1)
        if of_key:  # I(X; J) with J ~ a(X)
            mean = rows.mean(0)
            information = float((rows * (rows / mean).log()).sum(-1).mean())
        else:  # A(X) is an injective function of X: I = H(X)
            information = math.log(inputs)
        yield {"rows": rows}, _over(information, math.log(length))


def _entropy_bound(generator: torch.Generator, *, total: bool) -> Iterator[Case]:
    for pattern in _patterns(generator):
        entropies = torch.special.entr(pattern).sum(-1)
        squares = pattern.square().sum(-1)
        if total:
            yield {"A": pattern}, _over(float(entropies.sum()), float(squares.sum()) / 2 + math.log(len(pattern)))
        else:
            excess = (entropies - squares / 2 - math.log(len(pattern))).max()
            yield {"A": pattern}, float(excess)


def _outer_product_limit(generator: torch.Generator) -> Iterator[Case]:
    """D3': the error of aaᵀ for diag(a) − aaᵀ must be at most C times the temperature, with C = 10."""
    for length in (2, 3, 5):
        scores = _normal(generator, length)
        for temperature in (1.0, 0.1, 0.01):
            row = torch.softmax(scores / temperature, -1)
            error = float(torch.linalg.matrix_norm(row[:, None] * row - score_fisher(row)))
            yield {"scores": scores, "temperature": torch.tensor(temperature)}, _over(error, 10 * temperature)


def _entropy_controls_error(generator: torch.Generator) -> Iterator[Case]:
    """D4' with C = 10⁶: a one-hot row has entropy 0 but an error of 1."""
    for row in _rows(generator):
        error = float(torch.linalg.matrix_norm(row[:, None] * row - score_fisher(row)))
        yield {"a": row}, _over(error, 1e6 * float(torch.special.entr(row).sum()))


def _scale_separation(generator: torch.Generator) -> Iterator[Case]:
    """D5' with blocks of 2^Λ, C = 10 and ξ = 1."""
    for length in (8, 16, 64):
        for pattern in (torch.full((length, length), 1 / length, dtype=torch.float64), torch.eye(length).double()):
            for far in range(1, length.bit_length() - 1):
                fine, coarse = pattern.flatten(), _coarse(pattern, 2**far).flatten()
                product = float((fine * coarse).sum() / (fine.norm() * coarse.norm()))
                yield {"A": pattern, "distance": torch.tensor(far)}, _over(product, 10 * math.exp(-far))


def _coarse(pattern: Tensor, block: int) -> Tensor:
    """Replace each block of the pattern by its mean."""
    count = len(pattern) // block
    blocks = pattern.view(count, block, count, block).mean((1, 3), keepdim=True)
    return blocks.expand(count, block, count, block).reshape_as(pattern)


def _inverse_is_one_plus(generator: torch.Generator) -> Iterator[Case]:
    """F3: I + aaᵀ at its best scale against the damped inverse of the row's Fisher; an error above ½ refutes ≈."""
    for row in _rows(generator):
        identity = torch.eye(len(row), dtype=torch.float64)
        inverse = torch.linalg.inv(score_fisher(row) + 0.01 * identity)
        guess = identity + row[:, None] * row
        scale = (inverse * guess).sum() / guess.square().sum()
        error = float(torch.linalg.matrix_norm(scale * guess - inverse) / torch.linalg.matrix_norm(inverse))
        yield {"a": row}, error - 0.5


def _fisher_of_scores(generator: torch.Generator) -> Iterator[Case]:
    """D1: Jᵀ (diag(a) − aaᵀ) J equals E_{j∼a}[∇log a_j ∇log a_jᵀ], computed from its definition."""
    for length, parameters in ((2, 1), (3, 2), (6, 4)):
        jacobian, scores = _normal(generator, 1, length, parameters), _normal(generator, 1, length)
        row = torch.softmax(scores, -1)
        score = jacobian[0] - row @ jacobian[0]
        by_definition = score.mT @ (row[0, :, None] * score)
        error = torch.linalg.matrix_norm(attention_fisher(jacobian, row) - by_definition)
        yield {"J": jacobian[0], "a": row[0]}, float(error / torch.linalg.matrix_norm(by_definition)) - ROUNDING


def _natural_softmax(generator: torch.Generator) -> Iterator[Case]:
    """D2: the closed form solves (F + λI) u = (1 + λ) g."""
    for row in _rows(generator):
        gradient = _normal(generator, len(row))  # of the pattern; that of the scores is F times it
        for damping in (1e-3, 0.1, 10.0):
            matrix = score_fisher(row) + damping * torch.eye(len(row), dtype=torch.float64)
            exact = (1 + damping) * torch.linalg.solve(matrix, score_fisher(row) @ gradient)
            error = (natural_score_gradient(row, gradient, damping) - exact).norm() / gradient.norm()
            yield {"a": row, "h": gradient, "damping": torch.tensor(damping)}, float(error) - ROUNDING


THEOREMS: Mapping[str, _Theorem] = {
    "P1 whole": _Theorem(
        "Σ_h ‖E_h‖_F² ≤ d·H·‖X‖_F⁴ for ‖W_Q‖_F² = ‖W_K‖_F² = d of all heads together",
        partial(_energy_bound, whole=True),
        "proved: ‖E_h‖_F ≤ ‖X‖² ‖W_Q^h‖ ‖W_K^h‖ / √d_h, and the shares of the heads sum to at most d²/d_h = d·H",
    ),
    "P1 per head": _Theorem(
        "Σ_h ‖E_h‖_F² ≤ d·H·‖X‖_F⁴ for ‖W_Q^h‖_F² = ‖W_K^h‖_F² = d of every head",
        partial(_energy_bound, whole=False),
        "aligned weights reach ‖X‖⁴ d²/d_h in every head, which is H times the bound",
    ),
    "P2": _Theorem("A(αX) = A(X)", _scale_invariance, "scores grow with α²; it holds behind a layer norm"),
    "P3": _Theorem("λ_min(A Aᵀ) ≥ 1/L", _least_eigenvalue, "a pattern with two equal rows has λ_min = 0"),
    "P4": _Theorem(
        "‖x_t‖ ≤ (1 − η/L)^t ‖x_0‖ for gradient descent on ½ xᵀ A Aᵀ x, η = ½ (our definition of the descent)",
        _convergence,
        "rests on P3: a direction of eigenvalue 0 does not move",
    ),
    "P5 output": _Theorem(
        "I(X; A(X)) ≤ log L, A(X) the row of attention itself",
        partial(_information, of_key=False),
        "a row of real numbers can tell more than L inputs apart",
    ),
    "P5 key": _Theorem(
        "I(X; J) ≤ log L, J the key that the row draws",
        partial(_information, of_key=True),
        "proved: I(X; J) ≤ H(J) ≤ log L",
    ),
    "P6 row": _Theorem(
        "H(a_i) ≤ ½ ‖A‖_F² + log L for every row",
        partial(_entropy_bound, total=False),
        "proved: H(a_i) ≤ log L already",
    ),
    "P6 total": _Theorem(
        "Σ_i H(a_i) ≤ ½ ‖A‖_F² + log L",
        partial(_entropy_bound, total=True),
        "the uniform pattern has L log L on the left",
    ),
    "D1": _Theorem(
        "the Fisher of a row's parameters is Jᵀ (diag(a) − aaᵀ) J",
        _fisher_of_scores,
        "proved; by autograd in the tests of natattn.fisher",
    ),
    "D2": _Theorem("the closed form of (1 + λ)(diag(a) − aaᵀ + λI)⁻¹ g", _natural_softmax, "proved: Sherman–Morrison"),
    "D3'": _Theorem(
        "‖aaᵀ − (diag(a) − aaᵀ)‖ ≤ 10 τ at temperature τ",
        _outer_product_limit,
        "as τ → 0 the row becomes one-hot: its Fisher vanishes and aaᵀ does not",
    ),
    "D4'": _Theorem(
        "‖aaᵀ − (diag(a) − aaᵀ)‖ ≤ 10⁶ · H(a)", _entropy_controls_error, "a one-hot row has entropy 0 and error 1"
    ),
    "D5'": _Theorem(
        "⟨A, A coarse-grained to blocks of 2^Λ⟩, of unit norms, ≤ 10 exp(−Λ) (our definition of the scales)",
        _scale_separation,
        "the uniform pattern is its own coarse-graining at every scale",
    ),
    "F3": _Theorem(
        "‖c(I + aaᵀ) − (diag(a) − aaᵀ + 0.01 I)⁻¹‖ ≤ ½ ‖(…)⁻¹‖ at the best c",
        _inverse_is_one_plus,
        "the inverse is largest where a is small, I + aaᵀ where it is large",
    ),
}
# Statements with a one-line proof; for the others a search without a counterexample proves nothing.
PROVED = frozenset(name for name, theorem in THEOREMS.items() if theorem.note.startswith("proved"))

QUESTION = Question(Theorems, measure, section)
