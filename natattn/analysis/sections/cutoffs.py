"""Cells about a power law with an exponential cutoff, which is what claim K2 says of cascades."""

import numpy as np
from numpy.typing import NDArray

from natattn.analysis.powerlaw import PowerLaw, fit_cutoff
from natattn.report.section import Cell

CUTOFF_HEADINGS = (
    "low", "high", "τ with a cutoff", "low with a cutoff", "high with a cutoff", "log ratio to a cutoff",
    "p of a cutoff", "log ratio to lognormal", "p of lognormal", "log ratio to exponential", "p of exponential",
)  # fmt: skip
MOST_REPLICAS = 100  # each is a search in two parameters


def cutoff_cells(sizes: NDArray[np.float64], law: PowerLaw | None, *, replicas: int, seed: int) -> tuple[Cell, ...]:
    """Under ``CUTOFF_HEADINGS``: the interval of the plain τ, τ of s^(−τ) exp(−s/s_c), and log-likelihood ratios.

    The interval of the second τ is the percentile one over sizes drawn with replacement, the lower bound being that of
    the plain law: bounds that move with the sample would say which part of the curve was fitted, not how surely. Ratios
    are the power law's minus the rival's; below zero the rival is nearer.
    """
    if law is None or law.fit is None:
        return (None,) * len(CUTOFF_HEADINGS)
    interval = (None, None) if law.interval is None else law.interval
    ratios: list[Cell] = []
    for name in ("cutoff", "lognormal", "exponential"):
        rival = law.rivals.get(name)
        ratios += [None, None] if rival is None else [rival.log_ratio, rival.p_value]
    return (*interval, law.cutoff_exponent, *_interval(sizes, law, min(replicas, MOST_REPLICAS), seed), *ratios)


def _interval(sizes: NDArray[np.float64], law: PowerLaw, replicas: int, seed: int) -> tuple[float | None, float | None]:
    """95 % percentile interval of the exponent beside a cutoff; None without replicas."""
    if not replicas or law.fit is None:
        return None, None
    tail = sizes[sizes >= law.fit.minimum]
    exponents = []
    for index in range(replicas):
        drawn = np.random.default_rng((seed, index)).choice(tail, len(tail))
        if drawn.min() < drawn.max():
            exponents.append(fit_cutoff(drawn, law.fit, discrete=True)[1])
    if not exponents:
        return None, None
    return float(np.quantile(exponents, 0.025)), float(np.quantile(exponents, 0.975))
