"""Critical points of systems that are known."""

import math

import numpy as np
import pytest
import torch

from natattn.analysis.criticality import (
    Peak,
    correlation_lengths,
    critical_temperatures,
    find_peak,
    finite_size,
    power_of,
)
from natattn.analysis.temperature_scan import ROW_MEANS, TemperatureScan, _tempered
from natattn.statistics.paired import slope_interval

GRID = np.geomspace(0.1, 10.0, 41)


def two_level_capacity(temperature, gap, count):
    high = 1 / (1 + (count - 1) * np.exp(-gap / temperature))
    return (gap / temperature) ** 2 * high * (1 - high)


def scan_of(energy_BHLS, grid=GRID):
    """A scan of one layer whose scores are given; every row may attend to every key."""
    heads, keys = energy_BHLS.shape[1], energy_BHLS.shape[3]
    allowed, counts = torch.ones_like(energy_BHLS).bool(), torch.full(energy_BHLS.shape[:3], keys)
    values: dict[str, list[torch.Tensor]] = {name: [] for name in ROW_MEANS}
    grams = []
    for temperature in grid:
        rows, _ = _tempered(energy_BHLS, allowed, counts, float(temperature))
        for name in ROW_MEANS:
            values[name].append(rows[name].mean(-1).mT[None])
        order = rows["order_parameter"].transpose(0, 1)
        order = (order - order.mean(1, keepdim=True)) * (keys / order.shape[-1]) ** 0.5
        grams.append((order @ order.mT)[None])
    empty = torch.zeros(len(grid), 1, heads, 1)
    return TemperatureScan(
        "frozen", torch.as_tensor(grid), [0], {name: torch.stack(v) for name, v in values.items()},
        torch.stack(grams), empty, None, energy_BHLS.shape[2],
    )  # fmt: skip


@pytest.mark.parametrize(("gap", "count"), [(2.0, 2), (3.0, 10), (5.0, 1000)])
def test_the_peak_of_two_levels(gap, count):
    fine = np.geomspace(0.1, 10.0, 200_001)
    exact = two_level_capacity(fine, gap, count)
    found = find_peak(GRID, two_level_capacity(GRID, gap, count))
    assert found.temperature == pytest.approx(fine[exact.argmax()], rel=0.02)
    assert found.height == pytest.approx(exact.max(), rel=0.02)
    above = fine[exact >= exact.max() / 2]
    assert found.width == pytest.approx(math.log(above[-1] / above[0]), rel=0.05)


def test_a_maximum_at_an_edge_is_no_peak():
    assert find_peak(GRID, GRID) is None
    assert find_peak(GRID, 1 / GRID) is None
    assert find_peak(GRID, np.where(GRID > 1, np.nan, 1.0)) is None


def test_random_energies_freeze_where_the_random_energy_model_does():
    """T_c = σ/√(2 ln n) for n independent Gaussian energies (Derrida 1981); a finite n peaks above it."""
    heights = {}
    for count in (64, 4096):
        generator = torch.Generator().manual_seed(0)
        energy = torch.randn(6, 1, 64, count, generator=generator, dtype=torch.float64)
        (critical,) = critical_temperatures(scan_of(energy, np.geomspace(0.1, 3.0, 31)), replicas=50)
        expected = 1 / math.sqrt(2 * math.log(count))
        assert critical.interval[0] <= critical.peak.temperature <= critical.interval[1]
        assert critical.inside == 1.0
        assert 1.0 < critical.peak.temperature / expected < 1.5
        heights[count] = critical.peak.height
    assert heights[64] < heights[4096] < 2 * math.log(4096)  # C = σ²/T² above T_c, so that σ²/T_c² is its bound


def test_intervals_hold_the_truth_for_heads_that_differ():
    gaps = torch.tensor([2.0, 4.0])
    energy = torch.zeros(24, 2, 8, 16, dtype=torch.float64)
    noise = torch.randn(24, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy[..., 0] = gaps[None, :, None] * (1 + 0.1 * noise)
    found = critical_temperatures(scan_of(energy), replicas=100)
    assert [(item.layer, item.head) for item in found] == [(0, 0), (0, 1)]
    fine = np.geomspace(0.1, 10, 20_001)
    for item, gap in zip(found, gaps.tolist(), strict=True):
        truth = fine[two_level_capacity(fine, gap, 16).argmax()]
        assert item.peak.temperature == pytest.approx(truth, rel=0.05)
        assert item.interval[1] / item.interval[0] < 1.2
    again = critical_temperatures(scan_of(energy), replicas=100)
    assert found == again


def test_the_susceptibility_is_resampled_as_it_is_computed():
    energy = torch.randn(12, 1, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    scan = scan_of(energy)
    doubled = scan_of(torch.cat([energy, energy]))
    from natattn.analysis.criticality import _curve

    twice = _curve(scan, "susceptibility", torch.full((1, 12), 2.0))[0]
    torch.testing.assert_close(twice, doubled.susceptibility, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(_curve(scan, "susceptibility", torch.ones(1, 12))[0], scan.susceptibility)
    (critical,) = critical_temperatures(scan, "susceptibility", replicas=20)
    assert critical.peak is not None


@pytest.mark.parametrize("length", [5.0, 20.0])
def test_correlation_lengths_of_an_exponential(length):
    lags = torch.arange(400, dtype=torch.float64)
    second, exponential = correlation_lengths(torch.stack([torch.exp(-lags / length), torch.ones(400)]))
    assert float(exponential[0]) == pytest.approx(length, rel=1e-6)
    assert float(second[0]) == pytest.approx(length, rel=0.1)
    assert math.isinf(exponential[1])
    assert math.isnan(correlation_lengths(torch.zeros(5))[0])


def test_powers_and_their_intervals():
    sizes = [64, 128, 256, 512, 1024]
    found = power_of(sizes, [3.0 * (size / 768) ** -0.5 for size in sizes])
    assert found.slope == pytest.approx(-0.5)
    assert found.interval[1] - found.interval[0] < 1e-6
    generator = np.random.default_rng(0)
    noisy = [power_of(sizes, np.exp(0.3 * generator.normal(size=5))).interval for _ in range(400)]
    covered = np.mean([low < 0 < high for low, high in noisy])
    assert 0.92 < covered < 0.98
    assert math.isnan(slope_interval([1.0, 2.0], [1.0, 3.0])[1])


@pytest.mark.parametrize(
    ("height", "width", "verdict"),
    [
        (0.5, -0.5, "grows and sharpens"),
        (-0.3, 0.2, "rounds off"),
        (-0.3, 0.0, "rounds off"),
        (0.0, 0.2, "rounds off"),
        (0.5, 0.0, "undecided"),
        (0.0, 0.0, "undecided"),
    ],
)
def test_finite_size_verdicts(height, width, verdict):
    sizes = [64, 128, 256, 512]
    generator = np.random.default_rng(0)
    peaks = [
        [Peak(1.0, size**height * np.exp(0.01 * noise), size**width * np.exp(0.01 * noise)) for noise in noises]
        + [None]
        for size, noises in zip(sizes, generator.normal(size=(4, 3)), strict=True)
    ]
    assert finite_size(sizes, peaks).verdict == verdict
    assert finite_size(sizes[:2], peaks[:2]) is None
