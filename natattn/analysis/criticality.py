"""Critical points of temperature scans: peaks, correlation lengths, finite-size behaviour, exponents (claim K1).

A peak of the heat capacity alone is no phase transition: two levels have one. What would speak for one is a peak that
grows and sharpens with the size of the system, and that is asked here of the context length and of the width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from natattn.analysis.temperature_scan import TemperatureScan
from natattn.statistics.paired import slope_interval

PeakOf = Literal["heat_capacity", "susceptibility"]
PEAKS: tuple[PeakOf, ...] = ("heat_capacity", "susceptibility")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Peak:
    """A maximum inside a scan: where, how high, and how wide at half its height, in log T (nan where it is cut)."""

    temperature: float
    height: float
    width: float


@dataclass(frozen=True)
class CriticalTemperature:
    """Peak of one head, with a 95 % percentile interval of its temperature over resampled sequences.

    ``peak`` is None where the maximum is at an edge of the scan; ``inside`` is the share of resamplings in which it is
    not. The interval is of those alone, None where there are none.
    """

    layer: int
    head: int
    peak: Peak | None
    interval: tuple[float, float] | None
    inside: float


@dataclass(frozen=True)
class PowerOf:
    """y ∝ x^slope by least squares of the logarithms, with the 95 % t interval of the slope."""

    slope: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class FiniteSize:
    """Scaling of peaks with a size: powers for temperature, height and width, and their interpretation."""

    sizes: tuple[float, ...]
    temperature: PowerOf
    height: PowerOf
    width: PowerOf
    verdict: Literal["grows and sharpens", "rounds off", "undecided"]


def find_peak(temperatures: ArrayLike, values: ArrayLike) -> Peak | None:
    """The largest value, refined by a parabola in log T; None where it is the first or last, or one is not finite."""
    logs = np.log(np.asarray(temperatures, dtype=np.float64))
    curve = np.asarray(values, dtype=np.float64)
    if not np.isfinite(curve).all():
        return None
    top = int(curve.argmax())
    if top in (0, len(curve) - 1):
        return None
    place, height = _vertex(logs[top - 1 : top + 2], curve[top - 1 : top + 2])
    return Peak(math.exp(place), height, _width(logs, curve, top, height / 2))


def critical_temperatures(
    scan: TemperatureScan, of: PeakOf = "heat_capacity", *, replicas: int = 200, seed: int = 0
) -> list[CriticalTemperature]:
    """Peaks of C or χ of every head, with intervals over sequences drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    sequences = scan.order_gram.shape[-1]
    drawn = torch.randint(sequences, (replicas, sequences), generator=generator)
    weights = torch.zeros(replicas, sequences).scatter_add_(1, drawn, torch.ones(drawn.shape))
    whole, resampled = _curve(scan, of, torch.ones(1, sequences))[0], _curve(scan, of, weights)
    grid = scan.temperatures.numpy()
    found = []
    for place, layer in enumerate(scan.layers):
        for head in range(whole.shape[-1]):
            peaks = [find_peak(grid, curve[:, place, head].numpy()) for curve in resampled]
            inside = [peak.temperature for peak in peaks if peak is not None]
            interval = (float(np.quantile(inside, 0.025)), float(np.quantile(inside, 0.975))) if inside else None
            peak = find_peak(grid, whole[:, place, head].numpy())
            found.append(CriticalTemperature(layer, head, peak, interval, len(inside) / max(replicas, 1)))
    return found


def correlation_lengths(lag_profile: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation lengths ξ of G(r), in tokens: by the second moment and by an exponential fit.

    ξ² = Σ r² G(r) / (2 Σ G(r)), and the least-squares line of log G on r with weights G, over lags with G > 0. For
    G = exp(−r/ξ) and large ξ they agree; a profile that does not fall has a second moment that only says how long the
    context is, and an infinite second length.

    Args:
        lag_profile: [..., lags], non-negative.

    Returns: [...] each; nan for a profile without mass.
    """
    profile = lag_profile.double()
    lags = torch.arange(profile.shape[-1], dtype=torch.float64)
    mass = profile.sum(-1)
    second = ((profile * lags**2).sum(-1) / (2 * mass)).sqrt()
    logs = profile.clamp_min(1e-300).log()
    mean_lag, mean_log = ((profile * values).sum(-1, keepdim=True) / mass[..., None] for values in (lags, logs))
    slope = (profile * (lags - mean_lag) * (logs - mean_log)).sum(-1) / (profile * (lags - mean_lag) ** 2).sum(-1)
    falls = torch.where(slope < 0, -1 / slope, torch.inf)
    return second, torch.where(mass > 0, falls, torch.nan)


def finite_size(sizes: Sequence[float], peaks: Sequence[Sequence[Peak | None]]) -> FiniteSize | None:
    """Test whether peaks grow and sharpen with the size.

    Args:
        sizes: context lengths or widths.
        peaks: at every size, of every head; heads without a peak inside the scan are left out.

    Returns: None with fewer than three sizes that have peaks. "grows and sharpens": height rises and width falls with
    the size, both intervals excluding 0; "rounds off": height falls or width rises, its interval excluding 0; else
    "undecided".
    """
    rows = [(size, [peak for peak in of_size if peak is not None]) for size, of_size in zip(sizes, peaks, strict=True)]
    rows = [(size, found) for size, found in rows if any(math.isfinite(peak.width) for peak in found)]
    if len(rows) < 3:
        return None
    known = tuple(float(size) for size, _ in rows)
    powers = {
        name: power_of(
            known, [float(np.exp(np.nanmean(np.log([getattr(p, name) for p in found])))) for _, found in rows]
        )
        for name in ("temperature", "height", "width")
    }
    height, width = powers["height"].interval, powers["width"].interval
    verdict: Literal["grows and sharpens", "rounds off", "undecided"] = "undecided"
    if height[0] > 0 and width[1] < 0:
        verdict = "grows and sharpens"
    elif height[1] < 0 or width[0] > 0:
        verdict = "rounds off"
    return FiniteSize(known, powers["temperature"], powers["height"], powers["width"], verdict)


def power_of(sizes: Sequence[float], values: Sequence[float]) -> PowerOf:
    """Exponent of values ∝ sizes^slope. K1's α, of T_c(d) = T_0 (d/d_0)^(−α), is minus that of T_c on the width."""
    slope, half = slope_interval(np.log(np.asarray(sizes)), np.log(np.asarray(values)))
    return PowerOf(slope, (slope - half, slope + half))


def _curve(scan: TemperatureScan, of: PeakOf, weights: Tensor) -> Tensor:
    """The observable when every sequence counts so often, [replicas, T, layers, H]."""
    weights = weights.double()
    share = weights / weights.sum(-1, keepdim=True)
    if of == "heat_capacity":
        return torch.einsum("tlhb,rb->rtlh", scan.values[of], share)
    count = weights.sum(-1)[:, None, None, None]
    squares = torch.einsum("tlhb,rb->rtlh", scan.order_gram.diagonal(dim1=-2, dim2=-1), share)
    square_of_mean = torch.einsum("tlhbc,rb,rc->rtlh", scan.order_gram, share, share)
    return (squares - square_of_mean) * count / (count - 1)


def _vertex(x: Floats, y: Floats) -> tuple[float, float]:
    """Top of the parabola through three points of which the middle one is the highest."""
    left, right = (y[0] - y[1]) / (x[0] - x[1]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    if not curvature < 0:
        return float(x[1]), float(y[1])
    slope = left - curvature * (x[0] - x[1])  # at the middle point
    return float(x[1] - slope / (2 * curvature)), float(y[1] - slope**2 / (4 * curvature))


def _width(logs: Floats, curve: Floats, top: int, half: float) -> float:
    """Distance in log T of the two points at half the height; nan where the scan ends before one of them."""
    below = np.flatnonzero(curve < half)
    left, right = below[below < top], below[below > top]
    if not (left.size and right.size):
        return math.nan
    first, last = int(left[-1]), int(right[0])
    start = np.interp(half, curve[[first, first + 1]], logs[[first, first + 1]])
    stop = np.interp(half, curve[[last, last - 1]], logs[[last, last - 1]])
    return float(stop - start)
