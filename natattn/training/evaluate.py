"""Evaluation: the loss over a whole split, and attention's energies and entropy on a fixed probe batch."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.probe import AttentionProbe
from natattn.attention.site import AttentionSite
from natattn.data import TokenSplit, evaluation_batches
from natattn.data.blocks import IGNORED_LABEL
from natattn.fisher.approximation import jensen_shannon
from natattn.fisher.decomposition import row_patterns
from natattn.ranks import Ranks
from natattn.training.arms import Arm

PROBE_SEQUENCES = 8
PROBE_QUANTITIES = ("mean_absolute_energy", "maximum", "entropy", "heat_capacity")
COMPARED_ROWS = 16  # of each sequence, whose patterns are compared from one evaluation to the next


@torch.no_grad()
def split_loss(arm: Arm, split: TokenSplit, *, batch_size: int, context: int) -> float:
    """Mean loss in nats/token over a split, every token but the first predicted exactly once.

    Ranks take turns with the batches. Where there are none left for some, they compute the last one beside the others
    and do not count it: the forward passes of a model in parts need every rank.
    """
    arm.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=arm.device)
    count = 0
    ranks = arm.ranks
    for inputs, labels, counted in _turns(evaluation_batches(split, batch_size=batch_size, context=context), ranks):
        with arm.autocast():
            logits = arm.model(input_ids=torch.from_numpy(inputs).to(arm.device), use_cache=False).logits
        if counted:
            total += arm.cross_entropy(logits, torch.from_numpy(labels).to(arm.device), reduction="sum")
            count += int((labels[:, arm.label_shift - 1 :] != IGNORED_LABEL).sum())
    if ranks.size > 1:
        total, count = ranks.sum([total])[0], sum(ranks.gather(count))
    return float(total) / count


def _turns(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], ranks: Ranks
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(inputs, labels, whether it counts) of this rank's batches; as many on every rank."""
    remaining = iter(batches)
    while turn := list(itertools.islice(remaining, ranks.size)):
        yield *turn[min(ranks.rank, len(turn) - 1)], ranks.rank < len(turn)


@torch.no_grad()
def attention_metrics(arm: Arm, probe_batch: Tensor) -> dict[str, float]:
    """Mean |E|, largest E, mean entropy (nats) and heat capacity of every layer, over a fixed batch of tokens.

    ``pattern_divergence`` is the mean Jensen–Shannon divergence, in nats, of some rows' patterns from those of the
    arm's last evaluation, which are replaced by them. Any model can be observed so, whether or not it is in training.
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
            arm.model(input_ids=probe_batch, use_cache=False)
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


def first_sequences(split: TokenSplit, context: int, device: torch.device) -> Tensor:
    """The probe batch: the split's first few whole windows, int64 [sequences, context]."""
    batches: Iterable[tuple[np.ndarray, np.ndarray]] = evaluation_batches(
        split, batch_size=PROBE_SEQUENCES, context=context
    )
    inputs, labels = next(iter(batches))
    whole = (labels != IGNORED_LABEL).all(axis=1)
    return torch.from_numpy(inputs[whole] if whole.any() else inputs).to(device)
