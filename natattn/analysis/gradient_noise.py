"""The gradient noise scale: at what batch size more sequences stop paying (McCandlish et al. 2018, arXiv 1812.06162).

B_simple = tr Σ / |G|², with Σ the covariance of one sequence's gradient and G its mean. In the paper's picture a step
with batches of B sequences achieves 1 / (1 + B_simple / B) of what a step with the exact gradient would.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor, nn

from natattn.optim.matrix import ROLES, Matrix
from natattn.optim.partition import partition

ALL = "all"
BLOCKS = 8
# Sums of gradients by block are kept; of large models as many as have this many float32 together (4 GiB).
MOST_NUMBERS = 2**30
_FEWEST_BLOCKS = 3  # for an interval
_SLICE = 2**20  # numbers that are in float64 at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseScale:
    """The noise scale of some parameters.

    Attributes:
        squared_norm: unbiased estimate of |G|²; may be negative.
        trace: unbiased estimate of tr Σ, of one sequence.
        scale: tr Σ / |G|² in sequences; None where |G|² was not told from 0.
        interval: 95 %, by jackknife over blocks of sequences, of the logarithm; None where |G|² without one of the
            blocks would not be positive, or there are fewer than three blocks.
    """

    squared_norm: float
    trace: float
    scale: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class GradientMoments:
    """Moments of the gradients of N sequences, by blocks of sequences.

    Attributes:
        gram: scalar products of the blocks' sums of gradients, [blocks, blocks].
        squares: sums over each block of |g_i|², [blocks].
        counts: sequences of each block, [blocks].
    """

    gram: Floats
    squares: Floats
    counts: Floats

    def __add__(self, other: "GradientMoments") -> "GradientMoments":
        """Combine two groups of parameters over the same sequences."""
        return GradientMoments(self.gram + other.gram, self.squares + other.squares, self.counts)


def noise_scale(moments: GradientMoments) -> NoiseScale:
    """B_simple from N gradients.

    |G|² = (N |ḡ|² − mean |g_i|²) / (N − 1) and tr Σ = N (mean |g_i|² − |ḡ|²) / (N − 1), both unbiased.

    Raises: ValueError for fewer than two sequences.
    """
    if moments.counts.sum() < 2:
        raise ValueError("the noise of a gradient needs at least two sequences")
    blocks = len(moments.counts)
    squared_norm, trace = _estimates(moments, np.ones(blocks))
    if squared_norm <= 0:
        return NoiseScale(squared_norm, trace, None, None)
    scale = trace / squared_norm
    return NoiseScale(squared_norm, trace, scale, _interval(moments, scale))


def _estimates(moments: GradientMoments, kept: Floats) -> tuple[float, float]:
    """|G|² and tr Σ from the blocks with a one."""
    count = float(kept @ moments.counts)
    of_mean = float(kept @ moments.gram @ kept) / count**2
    mean_square = float(kept @ moments.squares) / count
    return (count * of_mean - mean_square) / (count - 1), count * (mean_square - of_mean) / (count - 1)


def _interval(moments: GradientMoments, scale: float) -> tuple[float, float] | None:
    """exp(log B ± t · s), with s² = (k − 1)/k Σ (log B₋ᵦ − mean)² over the k blocks that are left out in turn."""
    blocks = len(moments.counts)
    if blocks < _FEWEST_BLOCKS or moments.counts.sum() - moments.counts.max() < 2:
        return None
    without = np.array([_estimates(moments, 1.0 - np.eye(blocks)[block]) for block in range(blocks)])
    if not (without > 0).all():
        return None
    logs = np.log(without[:, 1] / without[:, 0])
    error = float(np.sqrt((blocks - 1) / blocks * ((logs - logs.mean()) ** 2).sum()))
    factor = float(np.exp(stdtrit(blocks - 1, 0.975) * error))
    return scale / factor, scale * factor


def gradient_moments(
    model: Any, tokens: Tensor, *, advance: Callable[[int], None] = lambda count: None
) -> dict[str, GradientMoments]:
    """Moments of single sequences' gradients by role of parameter, and of all parameters as "all".

    The loss is next-token cross-entropy, mean over a sequence, in evaluation mode; all parameters count, also those
    that are not trained. The model is left as it was. Memory: a gradient for each of up to eight blocks.

    Args:
        model: a causal language model of transformers.
        tokens: int64 [sequences, L], without padding; sequences that are near in the text should be near here.

    Raises: ValueError for a fused query-key-value weight whose layout is not known.
    """
    parameters = list(model.parameters())
    sequences = len(tokens)
    blocks = min(BLOCKS, sequences, MOST_NUMBERS // sum(p.numel() for p in parameters))
    blocks = blocks if blocks >= _FEWEST_BLOCKS else 1
    of_block = np.arange(sequences) * blocks // sequences
    counts = np.bincount(of_block, minlength=blocks).astype(np.float64)
    with _all_trainable(model):
        views = partition(model)
        place_of = {id(parameter): place for place, parameter in enumerate(parameters)}
        places = [place_of[id(view.parameter)] for view in views]
        sums = [[torch.zeros_like(p, dtype=torch.float32) for p in parameters] for _ in range(blocks)]
        squares = np.zeros((len(views), blocks))
        for block, sequence in zip(of_block, tokens.to(parameters[0].device), strict=True):
            gradients = _gradients(model, parameters, sequence)
            for total, gradient in zip(sums[block], gradients, strict=True):
                total += gradient
            for row, (view, place) in enumerate(zip(views, places, strict=True)):
                norm = torch.linalg.vector_norm(view.of(gradients[place]), dtype=torch.float64)
                squares[row, block] += float(norm) ** 2
            advance(1)
    found: dict[str, GradientMoments] = {}
    for view, place, square in zip(views, places, squares, strict=True):
        own = GradientMoments(_gram(view, [of_one[place] for of_one in sums]), square, counts)
        for name in (view.role, ALL):
            found[name] = found[name] + own if name in found else own
    return {name: found[name] for name in (ALL, *ROLES) if name in found}


def _gradients(model: Any, parameters: Sequence[nn.Parameter], sequence: Tensor) -> Sequence[Tensor]:
    """Return gradients of a sequence's mean loss; zeros for parameters that it does not depend on."""
    logits = model(input_ids=sequence[None], use_cache=False).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, sequence[1:])
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def _gram(view: Matrix, sums: Sequence[Tensor]) -> Floats:
    """Scalar products of a view's sums over blocks, in float64, a slice of its numbers at a time."""
    rows = [view.of(total).reshape(-1) for total in sums]
    gram = torch.zeros(len(sums), len(sums), dtype=torch.float64)
    for start in range(0, len(rows[0]), _SLICE):
        part = torch.stack([row[start : start + _SLICE] for row in rows]).double()
        gram += (part @ part.T).cpu()
    return gram.numpy()


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients for every parameter; all flags are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        model.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in required:
            parameter.requires_grad = requires_grad
