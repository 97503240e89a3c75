import math
import re

import pytest

from natattn.report.escaping import latex, markdown
from natattn.report.table import Badge, Estimate, cell_text, estimate_text, number_text
from natattn.reproduce.claims import CLAIMS

INF, NAN = math.inf, math.nan


# Digits.


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (-0.0658, -0.0719, -0.0597, "−0.0658 [−0.0719, −0.0597]"),
        (0.13, -0.01, 0.26, "0.13 [−0.01, 0.26]"),
        (1234.567, 1200.0, 1269.134, "1,235 [1,200, 1,269]"),
        (104.2, 69.1, 157.0, "104 [69, 157]"),
        (12345.0, 11111.0, 13579.0, "12,300 [11,100, 13,600]"),
        (0.5, 0.4004, 0.5996, "0.50 [0.40, 0.60]"),  # a half-width of 0.0996 is 0.10
        (2.0, 1.0, 3.0, "2.0 [1.0, 3.0]"),
        (0.001, -12.0, 12.0, "0 [−12, 12]"),
        (-0.0004, -0.31, 0.31, "0.00 [−0.31, 0.31]"),  # no −0.00
        (0.5, NAN, NAN, "0.5"),
        (-1.23456, NAN, NAN, "−1.235"),
        (NAN, NAN, NAN, "—"),
        (NAN, -1.0, 1.0, "— [−1.0, 1.0]"),
        (INF, NAN, NAN, "∞"),
        (-INF, NAN, NAN, "−∞"),
        (0.5, 0.4, INF, "0.50 [0.40, ∞]"),
        (0.5, -INF, INF, "0.5 [−∞, ∞]"),
        (1.0, 1.0, 1.0, "1 [1, 1]"),
        (1.2e-9, 0.9e-9, 1.5e-9, "(1.20 [0.90, 1.50]) × 10⁻⁹"),
        (-3.21e12, -3.33e12, -3.09e12, "(−3.21 [−3.33, −3.09]) × 10¹²"),
    ],
)
def test_an_estimate_has_the_digits_that_its_interval_supports(value, low, high, text: str) -> None:
    assert estimate_text(Estimate(value, low, high)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (-0.25, "−0.25"), (3.14159265, "3.142"), (123456.7, "123,457"),
        (0.012, "0.012"), (0.00099996, "0.001"), (1.2e-5, "1.2 × 10⁻⁵"), (9.99999e-6, "1 × 10⁻⁵"),
        (-6.02e23, "−6.02 × 10²³"), (5e-324, "4.941 × 10⁻³²⁴"), (INF, "∞"), (-INF, "−∞"), (NAN, "—"),
    ],
)  # fmt: skip
def test_numbers_without_an_interval(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, "—"), (1600, "1,600"), (-3, "−3"), ("a", "a"), (Badge("no effect"), "no effect"), (0.5, "0.5")],
)
def test_cells(cell, text: str) -> None:
    assert cell_text(cell) == text


# Escaping.


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a & b", r"a \& b"),
        ("50 %", r"50 \%"),
        ("$5", r"\$5"),
        ("#1", r"\#1"),
        ("natural_muon", r"natural\_muon"),
        ("{x}", r"\{x\}"),
        ("~", r"\textasciitilde{}"),
        ("2^3", r"2\textasciicircum{}3"),
        ("a\\b", r"a\textbackslash{}b"),
        ("a < b > c | d", r"a $<$ b $>$ c $|$ d"),
        ("−0.1 × 2", r"$-$0.1 $\times$ 2"),
        ("Δ ≤ ½", r"$\Delta$ $\leq$ $\frac{1}{2}$"),
        ("N·d ∝ √(L·H)", r"N$\cdot$d $\propto$ $\surd$(L$\cdot$H)"),
        ("F⁻¹ ≈ A Aᵀ", r"F\textsuperscript{$-$1} $\approx$ A A\textsuperscript{T}"),
        ("x₀ λ Σ_h", r"x\textsubscript{0} $\lambda$ $\Sigma$\_h"),
        ("x̄ m̂", r"\={x} \^{m}"),
        ("‖X‖ ⟨a⟩ → ∞", r"$\|$X$\|$ $\langle$a$\rangle$ $\rightarrow$ $\infty$"),
        ("Jensen–Shannon, “so” — …", r"Jensen--Shannon, ``so'' --- \ldots{}"),
        ("Jerónimo", "Jerónimo"),
        ("one\ntwo", "one two"),
        ("☃", "[U+2603]"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert latex(text) == escaped


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
def test_every_character_of_the_ledger_has_a_command(claim) -> None:
    for text in (claim.statement, claim.formula, claim.definition, claim.source):
        escaped = latex(text)
        assert "U+" not in escaped
        assert escaped.isascii()
        assert len(re.findall(r"(?<!\\)\$", escaped)) % 2 == 0
        assert len(re.findall(r"(?<!\\)[{]", escaped)) == len(re.findall(r"(?<!\\)[}]", escaped))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("natural_muon", "natural_muon"),  # inside a word it is no emphasis
        ("Σ_h ‖E_h‖_F _x_", r"Σ_h ‖E_h‖\_F \_x\_"),
        ("2*3*4", r"2\*3\*4"),
        ("<b> & $x$", r"\<b> \& \$x\$"),
        ("[a](b) `c` ~d~", r"\[a\](b) \`c\` \~d\~"),
        ("one\ntwo", "one two"),
    ],
)
def test_markdown_escapes(text: str, escaped: str) -> None:
    assert markdown(text) == escaped
