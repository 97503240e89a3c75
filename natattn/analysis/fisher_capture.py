"""Capture of the parts of the Fisher information of W_Q: rows of heads, and gradients of sampled labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from natattn.analysis.fisher_errors import QueryGradients, QueryRows
from natattn.analysis.patterns import captured
from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import attention_layers, projection_name
from natattn.attention.patterns import row_patterns
from natattn.attention.site import AttentionSite
from natattn.fisher.decomposition import softcap_slope
from natattn.randomness import addressed_seed

Place = tuple[int, int]  # layer, head
# Queries that differ from W_Q x + b by more than rounding have been turned or normalised since.
SAME_QUERY = 1e-3


def query_rows(
    model: Any, tokens: Tensor, heads: Mapping[int, Sequence[int]], rows: int, *, seed: int, batch_size: int = 8
) -> dict[Place, QueryRows]:
    """Query rows of some heads: other positions in every sequence, without replacement.

    Args:
        model: a transformers model; it is looked at in evaluation mode.
        tokens: int64 [B, L], without padding.
        heads: by layer, the heads that are wanted.
        rows: R of each sequence, at most L.

    Returns: by layer and head, float32 on the CPU. A layer is missing whose W_Q is not found, or whose queries are not
        W_Q x + b as they enter the softmax (rotary embedding, a norm): D1-Q is not of this form there.
    """
    names = _query_projections(model, heads)
    generator = torch.Generator().manual_seed(addressed_seed(seed, "Fisher rows"))
    length = tokens.shape[1]
    positions = torch.stack([torch.randperm(length, generator=generator)[: min(rows, length)] for _ in tokens])
    parts: dict[Place, list[tuple[Tensor, Tensor]]] = {}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    chosen = positions[:0]

    def keep(site: AttentionSite, inputs: AttentionInputs) -> None:
        if site.layer not in names:
            return
        input_BLN, output = seen.pop(names[site.layer])
        if not _is_query(output, inputs.query):
            return
        pattern, slope = row_patterns(inputs), softcap_slope(inputs, torch.arange(inputs.length, device=output.device))
        rows_BRN = _take(input_BLN[:, None], chosen)[:, 0].float().cpu()
        for head in heads[site.layer]:
            covariances = row_covariances(inputs, pattern, slope, head, chosen).float().cpu()
            parts.setdefault((site.layer, head), []).append((rows_BRN, covariances))

    device = next(model.parameters()).device
    with captured(model, keep), _watched(model, names.values(), seen):
        for batch, chosen in zip(torch.split(tokens, batch_size), torch.split(positions, batch_size), strict=True):
            chosen = chosen.to(device)
            model(input_ids=batch.to(device))
    return {place: QueryRows(*map(torch.cat, zip(*found, strict=True))) for place, found in parts.items()}


def query_gradients(
    model: Any,
    tokens: Tensor,
    places: Sequence[Place],
    head_dim: int,
    *,
    draws: int,
    seed: int,
    batch_size: int = 8,
    advance: Callable[[int], None] | None = None,
) -> dict[Place, QueryGradients]:
    """Gradients of Σ_t log p(y_t | tokens up to t) by W_Q, the labels y_t drawn from the model's own predictions.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokens: int64 [B, L], without padding.
        places: layers and heads that are wanted.
        draws: of the labels, for every sequence.
        advance: told of every sequence that is done.

    Returns: by layer and head, float32 on the CPU.
    """
    names = _query_projections(model, {layer: () for layer, _ in places})
    generator = torch.Generator().manual_seed(addressed_seed(seed, "Fisher labels"))
    device = next(model.parameters()).device
    parts: dict[Place, list[tuple[Tensor, Tensor]]] = {place: [] for place in places}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in torch.split(tokens, batch_size):
        with torch.enable_grad(), _watched(model, names.values(), seen):
            log_probability = model(input_ids=batch.to(device)).logits.float().log_softmax(-1)
        watched = {layer: seen[name] for layer, name in names.items()}
        drawn: dict[Place, list[tuple[Tensor, Tensor]]] = {place: [] for place in places}
        for deltas in _label_gradients(log_probability, [output for _, output in watched.values()], draws, generator):
            by_layer = dict(zip(watched, deltas, strict=True))
            for layer, head in places:
                delta_BLD = by_layer[layer][..., head * head_dim : (head + 1) * head_dim].float()
                gradient, second = (delta_BLD.mT @ other for other in (watched[layer][0].float(), delta_BLD))
                drawn[layer, head].append((gradient.cpu(), second.cpu() / batch.shape[1]))
        for place, pairs in drawn.items():
            gradients, seconds = (torch.stack(part, dim=1) for part in zip(*pairs, strict=True))
            parts[place].append((gradients, seconds.mean(1)))
        if advance is not None:
            advance(len(batch))
    return {place: QueryGradients(*map(torch.cat, zip(*pairs, strict=True))) for place, pairs in parts.items()}


def _label_gradients(
    log_probability: Tensor, outputs: list[Tensor], draws: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of Σ log p(y) by some tensors, for every draw of labels y from p = exp(log_probability)."""
    flat = log_probability.flatten(0, -2)
    labels = torch.multinomial(flat.detach().exp().cpu(), draws, replacement=True, generator=generator)
    for draw in range(draws):
        likelihood = flat.gather(1, labels[:, draw, None].to(flat.device)).sum()
        yield torch.autograd.grad(likelihood, outputs, retain_graph=draw + 1 < draws)


def _query_projections(model: nn.Module, layers: Mapping[int, Sequence[int]]) -> dict[int, str]:
    """By layer, the name of the module that makes the queries, first among its outputs; without those not found."""
    names = {}
    for found in attention_layers(model):
        name = projection_name(found.module, "query")
        if found.layer in layers and name is not None:
            names[found.layer] = f"{found.name}.{name}"
    return names


@contextmanager
def _watched(model: nn.Module, names: Iterable[str], seen: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Enter input and output of modules in ``seen`` at every forward pass; the input without its history."""

    def hook(name: str) -> Any:
        def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            seen[name] = arguments[0].detach(), output

        return watch

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_query(output: Tensor, query_BHLD: Tensor) -> bool:
    """Return whether the projection's output is the query that enters the softmax."""
    batch, heads, length, dim = query_BHLD.shape
    made = output[..., : heads * dim].view(batch, length, heads, dim).transpose(1, 2)
    return bool((made - query_BHLD).norm() <= SAME_QUERY * query_BHLD.norm())


def row_covariances(
    inputs: AttentionInputs, pattern: Tensor, slope: Tensor | None, head: int, rows_BR: Tensor
) -> Tensor:
    """(scaling/T)² Cov_{j∼a_i}(s_ij k_j) of some rows of a query head, [B, R, D, D].

    Args:
        pattern: a_ij of all rows, [B, H, L, S].
        slope: s_ij of a soft-cap, of the same shape; None without one.
        rows_BR: int64 [B, R], other rows in every sequence.
    """
    weight = _take(pattern[:, head, None], rows_BR)[:, 0]
    steepness = torch.ones_like(weight) if slope is None else _take(slope[:, head, None], rows_BR)[:, 0]
    key_BSD = inputs.key[:, head * inputs.key.shape[1] // inputs.query.shape[1]].to(weight.dtype)
    mean = (weight * steepness) @ key_BSD
    outer_BSF = (key_BSD[..., :, None] * key_BSD[..., None, :]).flatten(2)
    second = ((weight * steepness.square()) @ outer_BSF).view(*mean.shape, -1)
    temperature = torch.as_tensor(inputs.broadcast_temperature, dtype=mean.dtype, device=mean.device).flatten()
    scale = inputs.scaling / temperature[head % len(temperature)]
    return (second - mean[..., :, None] * mean[..., None, :]) * scale.square()


def _take(tensor_BHLV: Tensor, rows_BR: Tensor) -> Tensor:
    """The given rows of every sequence, [B, H, R, V]."""
    index = rows_BR[:, None, :, None].expand(-1, tensor_BHLV.shape[1], -1, tensor_BHLV.shape[-1])
    return tensor_BHLV.gather(2, index)
