"""Evaluation of an arm: the task's metrics over a split, attention on a fixed probe batch, and the cost of training."""

import resource
import sys
from typing import Any

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.patterns import jensen_shannon, row_patterns
from natattn.attention.probe import AttentionProbe
from natattn.attention.site import AttentionSite
from natattn.models.implicit_masks import one_sequence_per_row
from natattn.tasks.base import HeldOut
from natattn.training.arm import Arm

PROBE_QUANTITIES = ("mean_absolute_energy", "maximum", "entropy", "heat_capacity")
COMPARED_ROWS = 16  # rows of each sequence whose attention patterns are compared between evaluations


@torch.no_grad()
def split_metrics(arm: Arm, split: HeldOut, *, batch_size: int) -> dict[str, float]:
    """Return the task's metrics over a whole split as ``<split>/<name>``; ``loss`` (nats per unit) comes first."""
    arm.model.eval()
    with one_sequence_per_row():
        metrics = arm.task.evaluate(
            arm.model, split, autocast=arm.autocast, batch_size=batch_size, device=arm.device, ranks=arm.ranks
        )
    return {f"{split}/{name}": value for name, value in metrics.items()}


@torch.no_grad()
def attention_metrics(arm: Arm, probe_inputs: dict[str, Any]) -> dict[str, float]:
    """Return mean |E|, largest E, mean entropy (nats) and heat capacity of every layer on fixed inputs of the model.

    ``pattern_divergence`` is the mean Jensen–Shannon divergence (nats) between the attention patterns of some rows and
    those at the arm's last evaluation, which this call replaces.
    """
    arm.model.eval()
    metrics = {}
    patterns: dict[int, Tensor] = {}

    def keep(site: AttentionSite, inputs: AttentionInputs) -> None:
        rows_R = torch.linspace(0, inputs.length - 1, min(COMPARED_ROWS, inputs.length)).round().long()
        patterns[site.layer] = row_patterns(inputs, rows_R.to(inputs.query.device)).half()

    with AttentionProbe(arm.model, row_count=None, quantities=PROBE_QUANTITIES) as probe:
        for site in probe.sites:
            site.capture = keep
        with probe.step(0), arm.autocast():
            arm.model(**probe_inputs)
        for layer in probe.layers:
            statistics = probe.statistics(layer)
            for quantity in statistics.quantities:
                metrics[f"attention/layer_{layer}/{quantity}"] = float(
                    statistics[quantity].max() if quantity == "maximum" else statistics[quantity].mean()
                )
    for layer, rows in patterns.items():
        if layer in arm.patterns:
            divergence = jensen_shannon(arm.patterns[layer], rows).mean()
            metrics[f"attention/layer_{layer}/pattern_divergence"] = float(divergence)
    arm.patterns = patterns
    return metrics


def cost_metrics(arm: Arm, step: int) -> dict[str, float]:
    """Return what the optimizer measured in its last step, seconds of training, units per second and GPU memory."""
    metrics = {f"optim/{name}": value for name, value in arm.optimizer.metrics().items()} if step else {}
    seconds = arm.stopwatch.read()
    metrics["time/train_seconds"] = seconds
    if step and seconds:
        metrics[f"time/{arm.task.unit}s_per_second"] = step * arm.task.units_per_step / seconds
        metrics["time/optimizer_share"] = arm.optimizer_stopwatch.read() / seconds
    if arm.device.type == "cuda":
        metrics["time/peak_memory_bytes"] = float(arm.peak_memory)
    return metrics


def process_peak_memory() -> float:
    """Return the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
