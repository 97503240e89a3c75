"""Attention at other temperatures: what the scores would do (frozen), and what the model would do (propagated).

Two scans that answer different questions and are never mixed (claim K1): *frozen* keeps the scores that the model has
at its own temperature and re-tempers them, a_i = softmax(E_i/T); *propagated* runs the model with T in every layer, so
that deeper layers see other inputs. Only the second has a loss.

Definitions that the papers leave open, with n_i the number of keys that row i may attend to:

- order parameter m_i = (Σ_j a_ij² − 1/n_i)/(1 − 1/n_i): 0 for a uniform row, 1 for a single key; rows that have only
  one key have none;
- its susceptibility χ = mean over rows of n_i · Var over sequences of m_i, as of a magnetisation per site;
- lag profile G(r): mean attention paid r tokens away, the first token of a sequence left out as a key, because it takes
  attention for other reasons than its distance.

Shape suffixes: T temperatures, B sequences, H heads, R rows of a chunk, S keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from natattn.analysis.patterns import body_of, captured, model_inputs
from natattn.attention.energy import AttentionInputs
from natattn.attention.layers import PARAMETERS_ATTRIBUTE, attach, attention_layers, detach
from natattn.attention.site import AttentionSite
from natattn.attention.types.tempered import Tempered

ScanKind = Literal["frozen", "propagated"]
ROW_MEANS = ("free_energy", "internal_energy", "entropy", "heat_capacity", "order_parameter")
CHUNK_ROWS = 128


@dataclass(frozen=True, eq=False)
class TemperatureScan:
    """Result of a scan; everything float64 on the CPU.

    Attributes:
        temperatures: [T].
        layers: indices of the observed layers.
        values: by name of ``ROW_MEANS``, means over rows, [T, layers, H, sequences].
        order_gram: Σ_i n_i m_bi m_ci / L of every two sequences b and c, the mean over sequences taken off m,
            [T, layers, H, sequences, sequences]; χ, and its resamplings, are made of it.
        lag_profile: G(r) for r = 0, 1, …, [T, layers, H, length].
        loss: nats/token of every sequence, [T, sequences]; None for a frozen scan and for models without one.
        length: tokens of a sequence.
    """

    kind: ScanKind
    temperatures: Tensor
    layers: list[int]
    values: dict[str, Tensor]
    order_gram: Tensor
    lag_profile: Tensor
    loss: Tensor | None
    length: int

    @property
    def susceptibility(self) -> Tensor:
        """χ, [T, layers, H]; nan for a single sequence."""
        count = self.order_gram.shape[-1]
        total = self.order_gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        return total / (count - 1) if count > 1 else torch.full_like(total, torch.nan)


def scan_temperatures(
    model: Any,
    tokens: Tensor,
    temperatures: Sequence[float],
    *,
    kind: ScanKind = "frozen",
    batch_size: int = 8,
    advance: Callable[[int], None] | None = None,
) -> TemperatureScan:
    """Scan the self-attention layers of a transformers model.

    Time of a frozen scan: one forward pass, and for every temperature a few passes over each layer's L×L scores; memory
    O(batch_size · heads · CHUNK_ROWS · L), and the order parameter of every row, [T, heads, sequences, L]
    by layer. A propagated scan runs the model once for every temperature.

    Args:
        tokens: int64 [sequences, length], without padding; or what a vision model reads, see ``model_inputs``.
        temperatures: positive.
        advance: told how many (temperature, sequence) pairs are done more, for a progress bar.

    Raises: ValueError for temperatures that are not positive, for a model whose attention cannot be observed, and for a
        propagated scan of one whose attention has a temperature or damping attached.
    """
    grid = torch.as_tensor(list(temperatures), dtype=torch.float64)
    if not bool((grid > 0).all()) or grid.numel() == 0:
        raise ValueError("temperatures: must be positive, and at least one")
    tokens = tokens.to(next(model.parameters()).device)
    if kind == "frozen":
        sums, _ = _observe(model, tokens, grid, batch_size, advance, with_loss=False)
        return _finish(kind, grid, sums, None)
    implementation = model.config._attn_implementation
    layers = attention_layers(model, cross_attention=True)
    if any(PARAMETERS_ATTRIBUTE in vars(layer.module) for layer in layers):
        raise ValueError("kind=propagated: the model has a temperature or damping of its own; fold or detach it first")
    try:
        parts, losses = [], []
        for temperature in grid:
            attach(model, Tempered(float(temperature)))
            sums, loss = _observe(model, tokens, temperature[None], batch_size, advance, with_loss=True)
            parts.append(sums)
            losses.append(loss)
        joined = {layer: _LayerSums.joined([part[layer] for part in parts]) for layer in parts[0]}
        known = [loss for loss in losses if loss is not None]
        return _finish(kind, grid, joined, torch.stack(known) if known else None)
    finally:
        detach(model, implementation)


@dataclass(eq=False)
class _LayerSums:
    """Sums that a scan accumulates for one layer."""

    values: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in ROW_MEANS})  # of [T, H, B]
    order: list[Tensor] = field(default_factory=list)  # of m_i, float32 [T, H, B, L]
    keys: Tensor | None = None  # n_i, [L]
    lags: Tensor | None = None  # Σ a_ij by lag, [T, H, L]
    lag_pairs: Tensor | None = None  # how many pairs that is, [L]

    @staticmethod
    def joined(parts: "list[_LayerSums]") -> "_LayerSums":
        """Scans of one temperature each, as one."""
        result = _LayerSums()
        result.values = {name: [torch.cat([torch.cat(part.values[name], -1) for part in parts])] for name in ROW_MEANS}
        result.order = [torch.cat([torch.cat(part.order, 2) for part in parts])]
        result.lags = torch.cat([part.lags for part in parts if part.lags is not None])
        result.keys, result.lag_pairs = parts[0].keys, parts[0].lag_pairs
        return result


def _observe(
    model: Any, tokens: Tensor, grid: Tensor, batch_size: int, advance: Callable[[int], None] | None, with_loss: bool
) -> tuple[dict[int, _LayerSums], Tensor | None]:
    """Forward passes over all sequences, in batches; sums by layer, and each sequence's loss."""
    sums: dict[int, _LayerSums] = {}
    losses = []

    def capture(site: AttentionSite, inputs: AttentionInputs) -> None:
        _add_layer(sums.setdefault(site.layer, _LayerSums()), inputs, grid)

    has_loss = with_loss and _is_causal(model)
    forward = model if has_loss else body_of(model)
    with captured(model, capture):
        for batch in torch.split(tokens, batch_size):
            logits = getattr(forward(**model_inputs(batch)), "logits", None)
            if has_loss and logits is not None and logits.shape[:2] == batch.shape:
                losses.append(_sequence_losses(logits, batch))
            if advance is not None:
                advance(len(batch) * len(grid))
    return sums, torch.cat(losses) if losses else None


def _add_layer(sums: _LayerSums, inputs: AttentionInputs, grid: Tensor) -> None:
    """Enter a batch of one layer at every temperature, in chunks of rows."""
    chunks = []
    with torch.autocast(inputs.query.device.type, enabled=False):
        for rows_R in torch.split(torch.arange(inputs.length, device=inputs.query.device), CHUNK_ROWS):
            chunks.append(_chunk(inputs, rows_R, grid))
    for name in ROW_MEANS:
        rows = torch.cat([chunk.rows[name] for chunk in chunks], -1)
        sums.values[name].append(rows.nan_to_num(0.0).sum(-1) / rows.isfinite().sum(-1).clamp_min(1))
        if name == "order_parameter":
            sums.order.append(rows.float())
    lags, pairs = (torch.stack([getattr(chunk, name) for chunk in chunks]).sum(0) for name in ("lags", "lag_pairs"))
    sums.lags = lags if sums.lags is None else sums.lags + lags
    sums.lag_pairs = pairs if sums.lag_pairs is None else sums.lag_pairs + pairs
    sums.keys = torch.cat([chunk.keys for chunk in chunks])


@dataclass(frozen=True, eq=False)
class _Chunk:
    rows: dict[str, Tensor]  # at every temperature, [T, H, B, R], nan where undefined
    keys: Tensor  # n_i, [R]
    lags: Tensor  # Σ a_ij by lag, [T, H, S]
    lag_pairs: Tensor  # [S]


def _chunk(inputs: AttentionInputs, rows_R: Tensor, grid: Tensor) -> _Chunk:
    visible = inputs.first_keys(int(rows_R[-1]) + 1) if inputs.masks_the_future else inputs
    allowed = visible.allowed(rows_R)
    energy = visible.energies(rows_R).float().masked_fill(~allowed, -torch.inf)
    keys_BHR = allowed.sum(-1).expand(energy.shape[:3])
    lag_RS = (rows_R[:, None] + visible.first_position - torch.arange(visible.key_length, device=rows_R.device)).abs()
    results: dict[str, list[Tensor]] = {name: [] for name in ROW_MEANS}
    lags = []
    for temperature in grid.tolist():
        rows, pattern = _tempered(energy, allowed, keys_BHR, temperature)
        for name in ROW_MEANS:
            results[name].append(rows[name].transpose(0, 1))
        lags.append(_by_lag(pattern.sum(0), lag_RS, inputs.key_length))
    pairs = _by_lag(allowed.expand_as(energy).sum(0)[:1].double(), lag_RS, inputs.key_length)
    stacked = {name: torch.stack(values).double().cpu() for name, values in results.items()}
    return _Chunk(stacked, keys_BHR[0, 0].double().cpu(), torch.stack(lags).double().cpu(), pairs[0].cpu())


def _tempered(
    energy: Tensor, allowed: Tensor, keys_BHR: Tensor, temperature: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Row quantities [B, H, R], nan for rows without keys, and the pattern, from energies that are −inf if forbidden.

    Counted from the largest energy of the row, δ_ij = max E_i − E_ij, so that nothing overflows or cancels.
    """
    peak = energy.amax(-1, keepdim=True)
    depth = (peak - energy).masked_fill(~allowed, 0.0)
    weight = torch.exp(depth / -temperature) * allowed
    partition = weight.sum(-1, keepdim=True)
    pattern = weight / partition
    mean_depth = (pattern * depth).sum(-1)
    log_partition, peak = partition.log()[..., 0], peak[..., 0]
    variance = (pattern * (depth - mean_depth[..., None]).square()).sum(-1)
    rows = {
        "free_energy": -peak - temperature * log_partition,
        "internal_energy": mean_depth - peak,
        "entropy": log_partition + mean_depth / temperature,
        "heat_capacity": variance / temperature**2,
        "order_parameter": (pattern.square().sum(-1) - 1 / keys_BHR) / (1 - 1 / keys_BHR),
    }
    rows["order_parameter"] = rows["order_parameter"].masked_fill(keys_BHR < 2, torch.nan)
    rows = {name: values.masked_fill(keys_BHR == 0, torch.nan) for name, values in rows.items()}
    return rows, pattern.nan_to_num(0.0)


def _by_lag(pairs_HRS: Tensor, lag_RS: Tensor, length: int) -> Tensor:
    """Sums over pairs of equal distance, [H, length], without the first key."""
    by_lag = pairs_HRS.new_zeros(pairs_HRS.shape[0], length)
    return by_lag.index_add_(1, lag_RS[:, 1:].flatten(), pairs_HRS[..., 1:].flatten(1))


def _finish(kind: ScanKind, grid: Tensor, sums: dict[int, _LayerSums], loss: Tensor | None) -> TemperatureScan:
    layers = sorted(sums)
    keys = sums[layers[0]].keys
    assert keys is not None
    length = len(keys)
    values = {name: torch.stack([torch.cat(sums[layer].values[name], -1) for layer in layers], 1) for name in ROW_MEANS}
    grams, profiles = [], []
    for found in (sums[layer] for layer in layers):
        assert found.keys is not None
        assert found.lags is not None
        assert found.lag_pairs is not None
        order = torch.cat(found.order, 2).double().nan_to_num(0.0)
        weighted = (order - order.mean(2, keepdim=True)) * (found.keys / length).sqrt()
        grams.append(weighted @ weighted.mT)
        profiles.append(found.lags / found.lag_pairs.clamp_min(1))
    return TemperatureScan(kind, grid, layers, values, torch.stack(grams, 1), torch.stack(profiles, 1), loss, length)


def _is_causal(model: Any) -> bool:
    return (
        model.get_output_embeddings() is not None
        and not getattr(model.config, "is_encoder_decoder", False)
        and all(module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool))
    )


def _sequence_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, of every sequence, float64 on the CPU."""
    flat = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return flat.double().mean(1).cpu()
