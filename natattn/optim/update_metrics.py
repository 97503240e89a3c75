"""Metrics of an optimizer's last step, by role."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from natattn.distributed.ranks import Ranks
from natattn.optim.matrix import Matrix

Conditions = dict[str, list[list[float]]]  # by role: condition numbers of all heads, without and with the root


def update_metrics(changes: Iterable[tuple[Matrix, float, Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """Return, by role, the root mean square of learning_rate · u, and its ratio to the weights' if that is finite.

    Args:
        changes: (matrix, 1 − learning_rate · weight_decay, the full parameter before the step, and after it).
    """
    squares: dict[str, list[Tensor]] = {}
    for matrix, decay, before, after in changes:
        old = matrix.of(before).float()
        update = matrix.of(after).float() - decay * old
        entry = torch.stack([update.square().sum(), old.square().sum(), old.new_tensor(old.numel())])
        squares.setdefault(matrix.role, []).append(entry)
    result = {}
    for role, entries in squares.items():
        update, weight, count = torch.stack(entries).sum(0).tolist()
        values = {"update_rms": (update / count) ** 0.5}
        if weight > 0:
            values["update_to_weight"] = (update / weight) ** 0.5
        result[role] = {name: value for name, value in values.items() if math.isfinite(value)}
    return result


def preconditioner_metrics(
    conditions: Conditions, failed: int | None, skipped: int, ranks: Ranks, device: torch.device
) -> dict[str, float]:
    """Return geometric means of condition numbers by role, and failed decompositions, over the matrices of all ranks.

    Args:
        conditions: of this rank's matrices.
        failed: failed decompositions of this rank's matrices; None if it decomposes none.
        skipped: factors that were left out because they were not finite, the same number on all ranks.
    """
    gathered = ranks.gather({"conditions": conditions, "failed": failed}, device)
    joined: Conditions = {}
    for part in gathered:
        for role, columns in part["conditions"].items():
            kept = joined.setdefault(role, [[], []])
            for column, values in zip(kept, columns, strict=True):
                column.extend(values)
    metrics = {
        f"{role}/{name}": float(torch.tensor(values, dtype=torch.float64).log().mean().exp())
        for role, columns in joined.items()
        for name, values in zip(("condition", "preconditioned_condition"), columns, strict=True)
    }
    counts = [part["failed"] for part in gathered if part["failed"] is not None]
    if counts:
        metrics["failed_decompositions"] = float(sum(counts) + skipped)
    return metrics
