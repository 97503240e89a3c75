"""Attention patterns themselves: rank, sparsity by position, and how far two models' patterns are apart (claim R2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natattn.attention.energy import AttentionInputs
from natattn.attention.patterns import jensen_shannon, row_patterns
from natattn.attention.probe import AttentionProbe
from natattn.attention.site import AttentionSite

CHUNK_ROWS = 128
# Whole patterns are L × L for every head of every layer: of longer sequences only the beginning is looked at so.
LONGEST_PATTERN = 512

Patterns = dict[int, Tensor]  # by layer, float32 [sequences, H, L, L] on the CPU


@dataclass(frozen=True, eq=False)
class PatternStatistics:
    """Per layer and head, float64.

    Attributes:
        layers: their indices.
        effective_rank: exp of the entropy of the singular values' shares, mean over sequences, [layers, H].
        keys_for_90_percent: how many keys, in falling order, carry 90 % of a row; mean over sequences by position of
            the row, [layers, H, L].
        mean: the pattern, mean over sequences, [layers, H, L, L].
        deviation: standard deviation of its entries over sequences, [layers, H, L, L].
    """

    layers: list[int]
    effective_rank: Tensor
    keys_for_90_percent: Tensor
    mean: Tensor
    deviation: Tensor


def attention_patterns(model: Any, tokens: Tensor, *, batch_size: int = 8) -> Patterns:
    """The patterns of every self-attention layer of a transformers model, in evaluation mode.

    Memory: sequences · heads · L² numbers per layer; a few sequences are meant.

    Args:
        tokens: int64 [sequences, L], without padding; or what a vision model reads, see ``model_inputs``.
    """
    found: dict[int, list[Tensor]] = {}

    def keep(site: AttentionSite, inputs: AttentionInputs) -> None:
        found.setdefault(site.layer, []).append(row_patterns(inputs).float().cpu())

    device = next(model.parameters()).device
    with captured(model, keep):
        for batch in torch.split(tokens.to(device), batch_size):
            body_of(model)(**model_inputs(batch))
    return {layer: torch.cat(parts) for layer, parts in sorted(found.items())}


def row_entropies(model: Any, tokens: Tensor) -> Tensor:
    """Entropy of every row in nats, float64 [layers, sequences, H, L] on the CPU.

    Memory: sequences · heads · CHUNK_ROWS · L numbers beside the result.

    Args:
        tokens: as of ``attention_patterns``, on the model's device; all at once.
    """
    found: dict[int, Tensor] = {}

    def keep(site: AttentionSite, inputs: AttentionInputs) -> None:
        rows = torch.split(torch.arange(inputs.length, device=inputs.query.device), CHUNK_ROWS)
        entropies = [torch.special.entr(row_patterns(inputs, chunk)).sum(-1) for chunk in rows]
        found[site.layer] = torch.cat(entropies, -1).double().cpu()

    with captured(model, keep):
        body_of(model)(**model_inputs(tokens))
    return torch.stack([found[layer] for layer in sorted(found)])


def pattern_statistics(patterns: Patterns) -> PatternStatistics:
    """Rank, sparsity, mean and variability."""
    ranks, needed, means, deviations = [], [], [], []
    for pattern_BHLS in patterns.values():
        values = torch.linalg.svdvals(pattern_BHLS.double())
        shares = values / values.sum(-1, keepdim=True)
        ranks.append(torch.special.entr(shares).sum(-1).exp().mean(0))
        ordered = pattern_BHLS.double().sort(-1, descending=True).values.cumsum(-1)
        needed.append(((ordered < 0.9).sum(-1) + 1).double().mean(0))
        means.append(pattern_BHLS.double().mean(0))
        deviations.append(pattern_BHLS.double().std(0, correction=0))
    return PatternStatistics(
        list(patterns), torch.stack(ranks), torch.stack(needed), torch.stack(means), torch.stack(deviations)
    )


def pattern_divergence(first: Patterns, second: Patterns) -> Tensor:
    """Mean Jensen–Shannon divergence of corresponding rows, in nats, [layers, H]: 0 for equal rows, at most log 2.

    Raises: ValueError where the layers or shapes are not the same.
    """
    if first.keys() != second.keys() or any(first[layer].shape != second[layer].shape for layer in first):
        raise ValueError("the patterns are of different layers, heads or tokens")
    return torch.stack([jensen_shannon(first[layer], second[layer]).mean((0, 2)) for layer in first])


def model_inputs(batch: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a model: int64 tokens [sequences, L], or pixels [images, channels, height, width]."""
    return {"pixel_values": batch} if batch.ndim == 4 else {"input_ids": batch}


def body_of(model: Any) -> Any:
    """The model without its head, for those who look at attention alone: logits may be the largest tensor of all."""
    return getattr(model, "base_model", model)


@contextmanager
def captured(model: Any, keep: Callable[[AttentionSite, AttentionInputs], None]) -> Iterator[None]:
    """Show ``keep`` what enters every self-attention layer, in evaluation mode and without gradients."""
    was_training = model.training
    probe = AttentionProbe(model, quantities=())
    for site in probe.sites:
        site.capture = keep
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        probe.detach()
        model.train(was_training)
