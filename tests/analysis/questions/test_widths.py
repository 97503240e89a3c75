"""K1's exponents on peaks that were made by a power of the width, and its test that a power fits at all."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import f_oneway

from natattn.analysis.criticality import FiniteSize, PowerOf
from natattn.analysis.questions import widths
from natattn.analysis.questions.widths import (
    Exponent,
    Growth,
    HeadPeak,
    LeastLoss,
    Widths,
    exponents,
    lack_of_fit,
    study,
    verdict,
)
from natattn.analysis.verdicts import AnalysisResult

WIDTHS = (32, 64, 128, 256, 512)


def peaks(alpha, *, spread=0.02, curve=0.0, missing=()):
    """Four heads in two layers of three models for each width: T_c = 2 (d/768)^(−α_layer), by head 1, 1.2, …"""
    random = np.random.default_rng(0)
    found = []
    for width in WIDTHS:
        for seed in range(3):
            for layer in range(2):
                for head, place in enumerate(random.permutation(4)):  # heads of models correspond by rank alone
                    logs = math.log(width / 768)
                    temperature = 2 * math.exp(-alpha[layer] * logs + curve * (logs + 1) ** 2) * (1 + 0.2 * place)
                    temperature *= math.exp(spread * random.normal())
                    known = (width, head) not in missing
                    found.append(HeadPeak(
                        width, seed, "frozen", "heat_capacity", layer, head, temperature if known else None,
                        1.0 if known else None, 0.5 if known else None,
                    ))  # fmt: skip
    return found


def by_place(found):
    return {exponent.where: exponent for exponent in exponents(found)}


def test_exponents_come_back():
    found = by_place(peaks((0.5, -0.2)))
    for where, alpha in {"layer 0": 0.5, "layer 1": -0.2, "all heads": 0.15}.items():
        assert found[where].interval[0] <= alpha <= found[where].interval[1]
        assert found[where].alpha == pytest.approx(alpha, abs=0.02)
        assert found[where].models == 15
    # Geometric mean over the heads, at width 768.
    scale = 2 * math.prod(1 + 0.2 * head for head in range(4)) ** 0.25
    assert found["layer 0"].temperature == pytest.approx(scale, rel=0.05)


def test_ranks_are_heads_in_the_order_of_their_temperature():
    found = by_place(peaks((0.5, 0.5)))
    temperatures = [found[f"rank {rank}"].temperature for rank in range(4)]
    assert temperatures == pytest.approx([2.0, 2.4, 2.8, 3.2], rel=0.05)
    for rank in range(4):
        assert found[f"rank {rank}"].alpha == pytest.approx(0.5, abs=0.02)


def test_a_power_is_refuted_where_there_is_none():
    assert by_place(peaks((0.5, 0.5)))["all heads"].lack_of_fit > 0.05
    assert by_place(peaks((0.5, 0.5), curve=0.1))["all heads"].lack_of_fit < 1e-3


def test_heads_without_a_peak_are_counted():
    found = by_place(peaks((0.5, 0.5), missing={(32, 0), (32, 1), (32, 2), (32, 3)}))
    assert found["all heads"].without_peak == pytest.approx(1 / 5)
    assert found["all heads"].models == 12
    assert by_place([peak for peak in peaks((0.5, 0.5)) if peak.width <= 64]) == {}


def test_lack_of_fit_is_an_f_test_with_the_right_level():
    random = np.random.default_rng(0)
    x = np.repeat(np.arange(5.0), 3)
    p_values = [lack_of_fit(x, 1 + 2 * x + random.normal(size=15)) for _ in range(2000)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.015)
    # A level against its mean has the same within; with a line of slope 0 fitted to centred groups it is ANOVA's.
    y = np.array([1.0, 1.2, 3.0, 3.3, 1.1, 0.9])
    symmetric = np.repeat([-1.0, 0.0, 1.0], 2)
    anova = f_oneway(y[:2], y[2:4], y[4:])
    slope_square = 2 * ((y[4:].mean() - y[:2].mean()) / 2) ** 2 * 2
    between = sum(2 * (group.mean() - y.mean()) ** 2 for group in (y[:2], y[2:4], y[4:]))
    ratio = anova.statistic * 2 * (between - slope_square) / between
    from scipy.stats import f

    assert lack_of_fit(symmetric, y) == pytest.approx(f.sf(ratio, 1, 3), rel=1e-6)


def test_lack_of_fit_needs_repetition():
    assert lack_of_fit([1.0, 2.0, 3.0], [1.0, 2.0, 3.5]) is None
    assert lack_of_fit([1.0, 1.0, 2.0], [1.0, 2.0, 3.5]) is None
    assert lack_of_fit([1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3]) == 1.0
    assert lack_of_fit([1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 4, 4]) == 0.0


def section_of(found, monkeypatch, *, least=()):
    """Return the section about these peaks, and the panels that it draws by the name of the picture."""
    drawn = []
    monkeypatch.setattr(widths.figures, "powers", lambda panels, x_label: drawn.append(panels) or b"")
    section = widths.section(study(found, [LeastLoss(*values) for values in least]))
    return section, dict(zip([picture.name for picture in section.pictures], drawn, strict=True))


@pytest.mark.parametrize(
    ("alpha", "curve", "falls", "fits"),
    [
        (0.5, 0.0, "falls with the width: α = 0.5", "a power of the width is not refuted"),
        (-0.2, 0.0, "rises with the width: α = −0.199", "a power of the width is not refuted"),
        (-0.16, 0.1, "does not surely change with the width", "a power of the width is refuted"),
    ],
)
def test_the_section_says_where_temperatures_go_and_whether_a_power_fits(alpha, curve, falls, fits, monkeypatch):
    section, _ = section_of(peaks((alpha, alpha), curve=curve), monkeypatch)
    (finding,) = [each for each in section.findings if each.startswith("T_c by heat capacity, scores frozen")]
    assert falls in finding
    assert fits in finding
    assert "over 15 models, 0% of heads without a peak" in finding


@pytest.mark.parametrize(
    ("height", "width", "verdict"),
    [(0.5, -0.25, "grows and sharpens"), (-0.5, 0.25, "rounds off"), (0.5, 0.25, "rounds off")],
)
def test_the_section_says_whether_peaks_grow_with_the_width(height, width, verdict, monkeypatch):
    found = [
        replace(peak, height=peak.width**height, half_width=peak.width**width) for peak in peaks((0.5, 0.5), spread=0)
    ]
    section, _ = section_of(found, monkeypatch)
    (finding,) = [each for each in section.findings if each.startswith("Peaks of the heat capacity, scores")]
    assert finding.startswith(f"Peaks of the heat capacity, scores frozen, over widths: {verdict}: height ∝ d^")
    (row,) = section.tables[1].rows
    by_heading = dict(zip(section.tables[1].headings, row, strict=True))
    assert by_heading["power of the height"] == pytest.approx(height)
    assert by_heading["power of the width"] == pytest.approx(width)


def test_the_pictures_show_every_model_and_the_powers_that_were_fitted(monkeypatch):
    found = peaks((0.5, -0.2), spread=0, missing={(32, 0)})
    least = [(32, 0, 0.5, 3.0), (512, 1, 2.0, 2.0), (128, 0, 1.0, 2.5)]
    section, drawn = section_of(found, monkeypatch, least=least)
    assert any("The loss is least at T between 0.5 and 2 over 3 models" in each for each in section.findings)
    ((_, layers),) = drawn["widths"]
    assert [points.label for points in layers] == ["layer 0", "layer 1"]
    for points in layers:
        assert len(points.x) == 15
        scale, slope = points.power
        wide = points.x > 32  # of the narrowest models a head is missing
        assert points.y[wide] == pytest.approx(scale * points.x[wide] ** slope, rel=0.1)
    ((_, (heights,)),) = drawn["widths_heights"]
    assert heights.power is None
    assert heights.y == pytest.approx(np.ones(15))


def test_without_a_peak_nothing_is_drawn(monkeypatch):
    missing = {(width, head) for width in WIDTHS for head in range(4)}
    section, drawn = section_of(peaks((0.5, 0.5), missing=missing), monkeypatch)
    assert drawn == {}
    assert "nothing can be drawn" in section.findings[-1]
    assert any("at fewer than three widths, nothing can be said" in each for each in section.findings)


def analysis(*fits, growth=(), where="text", seeds=None):
    return AnalysisResult("models", where, None, None, {"widths": Widths((), (), fits, growth)}, seeds=seeds)


def exponent(alpha, half, *, where="all heads", models=18, fit=0.5):
    return Exponent("frozen", "heat_capacity", where, alpha, (alpha - half, alpha + half), 1.0, models, 0.0, fit)


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (exponent(0.4, 0.1), "supported"),
        (exponent(-0.4, 0.1), "refuted"),
        (exponent(0.001, 0.01), "no effect"),
        (exponent(0.1, 0.2), "inconclusive"),
        (exponent(0.4, 0.1, models=4), "inconclusive"),
        (exponent(0.4, 0.1, fit=0.01), "inconclusive"),  # T_c is not a power of the width
        (exponent(-0.4, 0.1, fit=0.01), "refuted"),
    ],
)
def test_verdict_on_an_exponent(fit, expected):
    (found,), tables = verdict("k", [analysis(fit)])
    assert (found.claim, found.study, found.verdict) == ("K1", "k", expected)
    assert (found.count, found.estimate.value) == (fit.models, fit.alpha)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(fit.interval)  # one row: not adjusted
    assert [table.name for table in tables] == ["widths"]


@pytest.mark.parametrize(("alpha", "expected"), [(0.4, "inconclusive"), (-0.4, "refuted")])
def test_few_seeds_can_refute_but_not_support(alpha, expected):
    (found,), _ = verdict("k", [analysis(exponent(alpha, 0.1), seeds=3)])
    assert found.verdict == expected
    assert "3 seeds of each" in found.note


def test_exponents_are_adjusted_over_families_and_scans():
    fit = exponent(0.1, 0.09)  # p about 0.03
    (alone,), _ = verdict("k", [analysis(fit)])
    (first, second), (table,) = verdict("k", [analysis(fit, where=where) for where in ("one", "two")])
    assert alone.verdict == "supported"
    assert first.verdict == second.verdict == "inconclusive"
    assert first.p_value == pytest.approx(2 * alone.p_value)
    assert [cells[0] for cells in table.rows] == ["one", "two"]


def test_places_and_peaks_have_tables_and_no_verdict():
    powers = (PowerOf(0.0, (0.0, 0.0)), PowerOf(0.11, (0.01, 0.21)), PowerOf(-0.12, (-0.3, 0.1)))
    growth = Growth("frozen", "heat_capacity", FiniteSize((32.0, 64.0, 128.0), *powers, "undecided"))
    found = analysis(exponent(0.4, 0.1), exponent(0.7, 0.1, where="layer 0"), growth=(growth,))
    findings, tables = verdict("k", [found])
    assert [finding.estimate.value for finding in findings] == [0.4]
    assert "undecided" in findings[0].note
    assert [(table.name, len(table.rows)) for table in tables] == [
        ("widths", 1), ("widths_by_place", 1), ("peaks_by_width", 1),
    ]  # fmt: skip
    assert tables[2].rows[0][3].value == 0.11


def test_widths_without_peaks_are_not_measured():
    (found,), tables = verdict("k", [analysis()])
    assert (found.verdict, found.count, tables) == ("inconclusive", 0, [])
    assert math.isnan(found.estimate.value)
    assert "not measured" in found.note
