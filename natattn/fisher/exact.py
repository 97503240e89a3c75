"""References by automatic differentiation: the attention-Fisher and a model's own Fisher, dense, for small cases."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jacrev

from natattn.attention.patterns import masked_softmax
from natattn.fisher.decomposition import attention_fisher

Parameters = Mapping[str, Tensor]


def attention_fisher_by_autograd(
    scores: Callable[[Parameters], Tensor], parameters: Parameters, allowed: Tensor | None = None
) -> Tensor:
    """D1 with the Jacobian of the scores from ``torch.func.jacrev``, in float64.

    Args:
        scores: parameters → z [..., S], one softmax per row of the last dimension; any finite number where forbidden.
        parameters: cast to float64 here; what else ``scores`` uses should be float64 too.
        allowed: bool, broadcastable to z; None allows every pair. Rows without an allowed key contribute nothing.

    Returns: float64 [P, P], in the order of ``parameters``, each flattened row-major.
    """
    vector, as_parameters = _flatten(parameters)
    score = scores(as_parameters(vector)).detach()
    if allowed is not None:
        score = score.masked_fill(~allowed, -torch.inf)
    jacobian = jacrev(lambda flat: scores(as_parameters(flat)))(vector)
    return attention_fisher(jacobian.detach(), masked_softmax(score))


def model_fisher(logits: Callable[[Parameters], Tensor], parameters: Parameters) -> Tensor:
    """A model's own Fisher, exact over its classes: Σ_rows Σ_c p_c ∇log p_c ∇log p_cᵀ, in float64.

    Args:
        logits: parameters → [..., classes]; rows are independent predictions, so leave out those that the loss ignores.
        parameters: cast to float64 here.

    Returns: float64 [P, P], in the order of ``parameters``; memory O(rows · classes · P).
    """
    vector, as_parameters = _flatten(parameters)

    def log_probabilities(flat: Tensor) -> Tensor:
        return torch.log_softmax(logits(as_parameters(flat)), -1)

    gradients: Tensor = jacrev(log_probabilities)(vector).detach().flatten(0, -2)
    probability = log_probabilities(vector).detach().exp().flatten()
    return (gradients * probability[:, None]).mT @ gradients


def monte_carlo_fisher(
    logits: Callable[[Parameters], Tensor], parameters: Parameters, *, samples: int, generator: torch.Generator
) -> Tensor:
    """An unbiased estimate of ``model_fisher`` from labels drawn from the model's own predictions.

    Rows are independent given the input, so every row's gradient enters by its own outer product: the products of two
    rows' gradients are 0 on average and would only add variance.

    Args:
        logits, parameters: as in ``model_fisher``.
        samples: labels drawn per row; the estimate is their mean.
        generator: the only source of randomness.

    Returns: float64 [P, P]; memory O(samples · rows · P).
    """
    vector, as_parameters = _flatten(parameters)
    probability = torch.softmax(logits(as_parameters(vector)).detach(), -1).flatten(0, -2)
    labels = torch.multinomial(probability, samples, replacement=True, generator=generator)

    def sampled_log_probabilities(flat: Tensor) -> Tensor:
        log_probability = torch.log_softmax(logits(as_parameters(flat)), -1).flatten(0, -2)
        return log_probability.gather(-1, labels)

    gradients: Tensor = jacrev(sampled_log_probabilities)(vector).detach().flatten(0, -2)
    return gradients.mT @ gradients / samples


def _flatten(parameters: Parameters) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """All parameters as one float64 vector, and the way back."""
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    vector = torch.cat([parameter.detach().double().flatten() for parameter in parameters.values()])

    def as_parameters(flat: Tensor) -> dict[str, Tensor]:
        pieces = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    return vector, as_parameters
