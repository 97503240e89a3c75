"""Output embedding and cross-entropy of stacked models in one pass, model by model.

The logits of several models together do not fit a processor's cache, and autograd reads and writes them many times.
Here the logits of one model are made, turned into their own gradient and used up before the next model's.
Shape suffixes: S models, M rows, N features, V tokens of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from natattn.attention.energy import working_dtype


def mean_cross_entropies(hidden_SMN: Tensor, weight_SVN: Tensor, labels_SM: Tensor, share: float = 1.0) -> Tensor:
    """``share`` times the mean cross-entropy in nats of softmax(hidden weightᵀ) with the labels, [S].

    Under autocast the products are made in its precision. The gradients with respect to ``hidden_SMN`` and
    ``weight_SVN`` are made along with the losses, so that there are no second derivatives.
    """
    losses_S: Tensor = _MeanCrossEntropies.apply(hidden_SMN, weight_SVN, labels_SM, share)  # type: ignore[no-untyped-call]
    return losses_S


class _MeanCrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SMN: Tensor, weight_SVN: Tensor, labels_SM: Tensor, share: float) -> Tensor:
        device = hidden_SMN.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_SMN.dtype
        count, rows = labels_SM.shape
        # A GPU has no such cache, and would rather be called once.
        at_once = 1 if device == "cpu" else count
        hidden, weight = hidden_SMN.to(dtype), weight_SVN.to(dtype)
        gradients = torch.empty_like(hidden), torch.empty_like(weight)
        losses = []
        with torch.autocast(device, enabled=False):
            for part in (slice(first, first + at_once) for first in range(0, count, at_once)):
                loss, slope = _loss_and_slope(hidden[part] @ weight[part].mT, labels_SM[part, :, None])
                losses.append(loss.mean((1, 2)) * share)
                slope = slope.to(dtype)
                torch.bmm(slope, weight[part], out=gradients[0][part])
                torch.bmm(slope.mT, hidden[part] * (share / rows), out=gradients[1][part])
        ctx.save_for_backward(gradients[0].mul_(share / rows).to(hidden_SMN.dtype), gradients[1].to(weight_SVN.dtype))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight = ctx.saved_tensors
        (factor,) = upstream
        # Of the sum of the losses, which is what training takes, it is 1: a table of embeddings is not read for that.
        if factor.device.type != "cpu" or bool((factor != 1).any()):
            hidden, weight = (gradient * factor[:, None, None] for gradient in (hidden, weight))
        return hidden, weight, None, None


def _loss_and_slope(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of every row, [s, M, 1], and its derivative by the row's logits, [s, M, V], made in their place."""
    logits = logits.to(working_dtype(logits))
    logits -= logits.amax(-1, keepdim=True)
    label_logits = logits.gather(-1, labels)
    weights = logits.exp_()
    partition = weights.sum(-1, keepdim=True)
    slope = weights.div_(partition)
    slope.scatter_add_(-1, labels, torch.full_like(labels, -1.0, dtype=slope.dtype))
    return partition.log() - label_logits, slope
