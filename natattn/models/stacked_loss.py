"""Output embedding and cross-entropy of stacked models in one pass, model by model.

The logits of several models together do not fit a processor's cache, and autograd reads and writes them many times.
Here the logits of one model are made, turned into their own gradient and used up before the next model's.
Shape suffixes: S models, M rows, N features, V tokens of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from natattn.attention.energy import working_dtype


def mean_cross_entropies(hidden_SMN: Tensor, weight_SVN: Tensor, labels_SM: Tensor) -> Tensor:
    """Mean cross-entropy in nats of softmax(hidden weightᵀ) with the labels, [S].

    Under autocast the products are made in its precision. The gradients with respect to ``hidden_SMN`` and
    ``weight_SVN`` are made along with the losses, so that there are no second derivatives.
    """
    losses_S: Tensor = _MeanCrossEntropies.apply(hidden_SMN, weight_SVN, labels_SM)  # type: ignore[no-untyped-call]
    return losses_S


class _MeanCrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SMN: Tensor, weight_SVN: Tensor, labels_SM: Tensor) -> Tensor:
        device = hidden_SMN.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_SMN.dtype
        count = len(hidden_SMN)
        # A GPU has no such cache, and would rather be called once.
        at_once = 1 if device == "cpu" else count
        hidden, weight = hidden_SMN.to(dtype), weight_SVN.to(dtype)
        gradients = torch.empty_like(hidden), torch.empty_like(weight)
        losses = []
        with torch.autocast(device, enabled=False):
            for part in (slice(first, first + at_once) for first in range(0, count, at_once)):
                logits = hidden[part] @ weight[part].mT
                log_pattern = torch.log_softmax(logits.to(working_dtype(logits)), -1)
                labels = labels_SM[part, :, None]
                losses.append(-log_pattern.gather(-1, labels).mean((1, 2)))
                slope = log_pattern.exp_()  # of the sum of the losses, in place
                slope.scatter_add_(-1, labels, torch.full_like(labels, -1.0, dtype=slope.dtype))
                slope = slope.to(dtype)
                torch.bmm(slope, weight[part], out=gradients[0][part])
                torch.bmm(slope.mT, hidden[part], out=gradients[1][part])
        ctx.save_for_backward(*gradients)
        ctx.rows = labels_SM.shape[1]
        ctx.dtypes = hidden_SMN.dtype, weight_SVN.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        factor = (upstream[0] / ctx.rows)[:, None, None]
        hidden, weight = (
            gradient.to(dtype).mul_(factor) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, None
