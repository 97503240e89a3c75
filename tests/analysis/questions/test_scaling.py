"""K3's fits on grids whose best N·d is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from natattn.analysis.questions import scaling
from natattn.analysis.questions.scaling import GridPoint, Scaling, head_differences, laws, optima, verdict
from natattn.analysis.verdicts import AnalysisResult

PRODUCTS = (8, 16, 32, 64, 128, 256)


def grid(best, *, noise=0.0, level=9.0, heads=(2, 4), contexts=(32, 64, 128, 256), entropies=(0.5, 1.5, 3.0)):
    """Parabolic valleys in log N·d around best(L, H)."""
    random = np.random.default_rng(0)
    return [
        GridPoint(
            context, entropy, count, product // count, 0,
            entropy + 0.1 * math.log(product / best(context, entropy)) ** 2 + noise * random.normal(), 1000,
            entropy + level,
        )
        for context in contexts for entropy in entropies for count in heads for product in PRODUCTS
    ]  # fmt: skip


def test_the_best_product_of_a_parabola_is_its_vertex():
    for optimum in optima(grid(lambda length, entropy: 4 * math.sqrt(length * entropy))):
        assert optimum.product == pytest.approx(4 * math.sqrt(optimum.context * optimum.entropy), rel=1e-6)
        assert optimum.loss == pytest.approx(optimum.entropy)
        assert optimum.missing is None


@pytest.mark.parametrize(
    ("best", "winner", "powers"),
    [
        (lambda length, entropy: 4 * math.sqrt(length * entropy), "claim: √(L·H)", (0.5, 0.5)),
        (lambda length, entropy: 50.0, "constant", (0.0, 0.0)),
        (lambda length, entropy: 0.6 * length, "linear in L", (1.0, 0.0)),
        (lambda length, entropy: 5 * math.sqrt(length), "√L", (0.5, 0.0)),
        (lambda length, entropy: 40 * math.sqrt(entropy), "√H", (0.0, 0.5)),
    ],
)
def test_the_law_that_made_the_grid_is_found(best, winner, powers):
    fitted = {law.name: law for law in laws(optima(grid(best, noise=2e-3)))}
    assert min(fitted.values(), key=lambda law: law.aicc).name == winner
    free = fitted["free powers of L and H"]
    for (low, high), power in zip(free.intervals, powers, strict=True):
        assert low <= power <= high
        assert high - low < 0.4
    assert fitted[winner].residual < 0.2


def test_the_claim_is_told_from_what_it_is_not():
    free = next(law for law in laws(optima(grid(lambda length, entropy: 50.0, noise=2e-3))) if law.intervals[0])
    assert not free.intervals[0][0] <= 0.5 <= free.intervals[0][1]


def test_a_valley_beyond_the_grid_is_no_optimum():
    low = optima(grid(lambda length, entropy: 2.0))
    high = optima(grid(lambda length, entropy: 1000.0))
    assert {optimum.missing for optimum in low} == {"best at the smallest"}
    assert {optimum.missing for optimum in high} == {"best at the largest"}
    assert all(optimum.product is None for optimum in low + high)
    assert laws(low) == []


def test_models_that_are_no_better_than_bigrams_say_nothing():
    found = optima(grid(lambda length, entropy: 2.0 * length if entropy > 1 else 50.0, level=-0.01))
    assert {optimum.missing for optimum in found} == {"not learned"}
    assert {optimum.missing for optimum in optima(grid(lambda length, entropy: 50.0, level=0.01))} == {None}


def test_what_cannot_be_told_apart_is_left_out():
    one_entropy = laws(optima(grid(lambda length, entropy: 50.0, entropies=(1.0,))))
    assert "free powers of L and H" not in {law.name for law in one_entropy}
    assert "linear in L" in {law.name for law in one_entropy}


def test_too_few_widths_are_no_curve_and_two_models_of_a_cell_are_refused():
    points = grid(lambda length, entropy: 50.0)
    assert optima([point for point in points if point.product < 64]) == []
    with pytest.raises(ValueError, match=r"two models of N·d = 8"):
        optima([points[0], points[0]])


def test_heads_are_compared_at_the_same_product():
    points = [GridPoint(32, 1.0, heads, 64 // heads, 0, 2.0 + 0.1 * heads, 1000, 9.0) for heads in (2, 4, 8)]
    assert head_differences(points) == [pytest.approx(0.6)]
    assert head_differences(points[:1]) == []


def result_of(points):
    found = optima(points)
    return Scaling(tuple(points), tuple(found), tuple(laws(found)))


def section_of(points, monkeypatch):
    monkeypatch.setattr(scaling.figures, "powers", lambda *arguments, **named: b"")
    return scaling.section(result_of(points))


def test_the_section_counts_the_curves_that_are_left_out(monkeypatch):
    """A valley at N·d = 2 L: with 4 heads beyond the grid at context 128 and more, and at 16 it is not learned."""
    points = grid(lambda length, entropy: 2.0 * length, contexts=(16, 32, 64, 128), entropies=(1.0,))
    points = [replace(point, bigram_loss=0.5) if point.context == 16 else point for point in points]
    section = section_of(points, monkeypatch)
    (finding,) = [each for each in section.findings if "left out of the fits" in each]
    assert finding.startswith("4 of 8 curves have no best N·d")
    assert "(best at the largest 2, not learned 2; not learned: no model is better than bigrams)" in finding
    assert not any("left out" in each for each in section_of(grid(lambda *sizes: 50.0), monkeypatch).findings)


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "0.2 nats/token over 1 seed;"), (3, "0.2 [0.15, 0.25] nats/token over 3 seeds;")]
)
def test_the_section_compares_heads_at_the_same_product_seed_by_seed(seeds, said, monkeypatch):
    """Two heads more cost 0.18, 0.2 and 0.22 by seed: a half-width of 4.303 · 0.02/√3."""
    points = [
        replace(point, seed=seed, loss=point.loss + (0.1 + 0.01 * (seed - seeds // 2)) * point.heads)
        for point in grid(lambda length, entropy: 50.0) for seed in range(seeds)
    ]  # fmt: skip
    (finding,) = [each for each in section_of(points, monkeypatch).findings if "The most heads against" in each]
    assert said in finding


def judged(points):
    return verdict("k", [AnalysisResult("grid", "grammars", None, None, {"scaling": result_of(points)})])


@pytest.mark.parametrize(
    ("power", "seeds", "expected"),
    [(0.5, 5, "supported"), (0.5, 4, "inconclusive"), (0.2, 5, "refuted"), (0.0, 1, "refuted")],
)
def test_verdict_on_the_powers_of_the_best_product(power, seeds, expected):
    """Valleys whose best N·d is 4·(L·H)^power."""
    points = [
        GridPoint(
            context, entropy, 2, product // 2, seed,
            0.1 * math.log(product / (4 * (context * entropy) ** power * (1 + 0.002 * seed))) ** 2, 1000, 9.0,
        )
        for context in (32, 64, 128, 256) for entropy in (0.5, 1.5, 3.0) for seed in range(seeds)
        for product in (2, 4, 8, 16, 32, 64, 128, 256, 512)
    ]  # fmt: skip
    findings, (laws_table, best) = judged(points)
    assert [(finding.claim, finding.verdict) for finding in findings] == [("K3", expected)] * 2
    assert [finding.estimate.value for finding in findings] == pytest.approx([power] * 2, abs=1e-3)
    assert findings[0].count == 12 * seeds
    free = next(row for row in laws_table.rows if row[1] == "free powers of L and H")
    assert free[2] == findings[0].estimate
    assert free[4].verdict == expected
    assert len(best.rows) == 12 * seeds


def test_a_grid_without_a_valley_is_not_measured():
    findings, tables = judged([])
    assert [finding.verdict for finding in findings] == ["inconclusive"] * 2
    assert "not measured" in findings[0].note
    assert tables == []
