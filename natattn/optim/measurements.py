"""What an optimizer's last step did, by role, for the metrics file."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from natattn.distributed.ranks import Ranks
from natattn.optim.partition import ParameterView

Conditions = dict[str, list[list[float]]]  # by role: condition numbers of all heads, without and with the root


def measured(
    changes: Iterable[tuple[ParameterView, float, Tensor, Tensor]],
) -> dict[str, dict[str, float]]:
    """By role: the root mean square of learning_rate · u, and the same relative to the weights', if finite.

    Args:
        changes: (view, 1 − learning_rate · weight_decay, the whole parameter before the step, and after it).
    """
    squares: dict[str, list[Tensor]] = {}
    for view, decay, before, after in changes:
        old = view.of(before).float()
        update = view.of(after).float() - decay * old
        entry = torch.stack([update.square().sum(), old.square().sum(), old.new_tensor(old.numel())])
        squares.setdefault(view.role, []).append(entry)
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
    """Of the matrices of all ranks: geometric means of condition numbers by role, and failed decompositions.

    Args:
        failed: decompositions of this rank's matrices that failed; None where it has none that are decomposed.
        skipped: factors that could not be entered, which all ranks know of.
    """
    found = ranks.gather({"conditions": conditions, "failed": failed}, device)
    joined: Conditions = {}
    for part in found:
        for role, columns in part["conditions"].items():
            kept = joined.setdefault(role, [[], []])
            for column, values in zip(kept, columns, strict=True):
                column.extend(values)
    metrics = {
        f"{role}/{name}": float(torch.tensor(values, dtype=torch.float64).log().mean().exp())
        for role, columns in joined.items()
        for name, values in zip(("condition", "preconditioned_condition"), columns, strict=True)
    }
    counts = [part["failed"] for part in found if part["failed"] is not None]
    if counts:
        metrics["failed_decompositions"] = float(sum(counts) + skipped)
    return metrics
