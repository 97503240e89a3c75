"""Claim K3, N·d = C·√(L·H(x)): the powers of the context L and of the entropy H in the best N·d (section ``scaling``).

log N·d = c + a log L + b log H is fitted to the best N·d of every curve that has its valley inside the grid; the claim
is a = b = ½. By our definition a power is ½ if it differs by at most ``TOLERANCE``. The joint F test of (½, ½) against
the free powers is printed beside; it bars ``supported`` where it rejects, and so do fewer than five seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from natattn.analysis.verdicts import AnalysisResult, Fit, adjusted, known, near
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.reproduce.judges.reading import bounds, is_rounded, number, row_of, rows_of, value_of
from natattn.statistics.paired import LEAST_FOR_A_CLAIM

CLAIMED = 0.5
TOLERANCE = 0.1
JOINT_LEVEL = 0.05
FREE, CLAIM = "free powers of L and H", "claim: √(L·H)"
_FITTED = 3  # numbers of the free law


@dataclass(frozen=True)
class _Power:
    analysed: AnalysisResult
    symbol: str
    fit: Fit
    joint: float
    seeds: int
    rounded: bool

    @property
    def is_complete(self) -> bool:
        """Nothing bars support: the joint test does not reject, and curves of few seeds share their luck."""
        return self.seeds >= LEAST_FOR_A_CLAIM and (math.isnan(self.joint) or self.joint >= JOINT_LEVEL)

    @property
    def note(self) -> str:
        if math.isnan(self.fit.value):
            return "not measured: too few curves have their best N·d inside the grid for free powers"
        parts = [
            f"interval of the fit over {self.fit.count} curves of {self.seeds} seed{'s' * (self.seeds != 1)}",
            "the joint F test of ½ and ½ was not made"
            if math.isnan(self.joint)
            else f"joint F test of ½ and ½: p = {self.joint:.2g}",
        ]
        if self.rounded:
            parts.append("from the digits that the page shows")
        return "; ".join(parts)


def judge_scaling(study: str, analyses: Sequence[AnalysisResult]) -> tuple[list[Finding], list[StudyTable]]:
    """Both powers of every grid, Holm-adjusted over all of them."""
    with_section = [analysed for analysed in analyses if "scaling" in analysed.sections]
    powers = [power for analysed in with_section for power in _powers(analysed)]
    if not powers:
        return [], []
    rule = near(TOLERANCE)
    findings = []
    for power, found in zip(powers, adjusted([p.fit for p in powers], CLAIMED), strict=True):
        said = rule(found, power.is_complete)
        interval = (bound + CLAIMED for bound in found.interval)
        findings.append(
            Finding(
                "K3", study, f"power of {power.symbol} in the best N·d (claimed: ½)", power.analysed.where,
                Estimate(power.fit.value, *interval), "", found.count, said,
                known(found.p_value), power.note, power.analysed.runs, CLAIMED,
            )
        )  # fmt: skip
    tables = [_law_table(with_section, findings), _optimum_table(with_section)]
    return findings, [table for table in tables if table.rows]


def _powers(analysed: AnalysisResult) -> Iterator[_Power]:
    free = row_of(analysed, "scaling", "law", FREE)
    joint = number(row_of(analysed, "scaling", "law", CLAIM), "p against free powers")
    inside = [r for r in rows_of(analysed, "scaling", "best N·d") if math.isfinite(number(r, "best N·d"))]
    for symbol in "LH":
        shown, low, high = f"power of {symbol}", f"low of {symbol}", f"high of {symbol}"
        value = value_of(free, f"exact power of {symbol}", text=shown)
        fit = Fit(value, *bounds(free, low, high, text=shown), len(inside) - _FITTED, len(inside))
        yield _Power(analysed, symbol, fit, joint, len({row.get("seed") for row in inside}), is_rounded(free, low))


def _law_table(analyses: Sequence[AnalysisResult], findings: Sequence[Finding]) -> StudyTable:
    """The claim among its rivals; the free powers with their adjusted intervals and verdicts."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for place, analysed in enumerate(analyses):
        pair = findings[2 * place : 2 * place + 2]
        for row in rows_of(analysed, "scaling", "law"):
            powers: list[Cell] = [value_of(row, f"exact power of {s}", text=f"power of {s}") for s in "LH"]
            badges: list[Cell] = [None, None]
            if row["law"] == FREE:
                powers, badges = [f.estimate for f in pair], [Badge(f.verdict) for f in pair]
            numbers = [known(number(row, name)) for name in ("C", "residual of log N·d", "AICc")]
            joint = known(number(row, "p against free powers"))
            rows.append((analysed.where, str(row["law"]), *powers, *badges, *numbers, joint))
            runs.append(analysed.runs)
    caption = (
        "Laws fitted to the best N·d of every curve that has one inside the grid. The least AICc is best, by less than "
        "2 it says nothing. p: F test of a law against the free powers. Intervals of the free powers are those of the "
        f"fit, Holm-adjusted against ½; ½ means within {TOLERANCE:g} of it, our definition."
    )
    headings = ("data", "law", "power of L", "power of H", "L: ½?", "H: ½?", "C", "residual of log N·d", "AICc",
                "p against free powers")  # fmt: skip
    return StudyTable(
        "scaling_laws", "The best N·d over context and entropy", caption, headings, tuple(rows), tuple(runs)
    )


def _optimum_table(analyses: Sequence[AnalysisResult]) -> StudyTable:
    """What the laws are fitted to, beside the claim's value with the claim's own fitted C."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for analysed in analyses:
        scale = number(row_of(analysed, "scaling", "law", CLAIM), "C")
        for row in rows_of(analysed, "scaling", "context L", "entropy H", "best N·d"):
            size = number(row, "context L") * number(row, "entropy H")
            claimed = scale * math.sqrt(size) if size >= 0 else math.nan
            cells = [row.get(name) for name in ("context L", "entropy H", "heads", "seed", "best N·d", "none because")]
            rows.append((analysed.where, *cells, known(claimed)))
            runs.append(analysed.runs)
    headings = ("data", "context L", "entropy H", "heads", "seed", "best N·d", "none because", "C·√(L·H)")
    caption = (
        "The vertex of a parabola in log N·d through the least loss and its neighbours; the claim with its best C."
    )
    return StudyTable("scaling_optima", "Best N·d of every curve", caption, headings, tuple(rows), tuple(runs))
