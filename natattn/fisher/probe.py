"""A probe that also keeps running Kronecker factors of attention (D1-Kron, D1-V) and covariances of layer inputs.

It reads what the training forward passes compute anyway, on some steps and from a few sequences, and never changes it.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from natattn.attention.energy import AttentionInputs, systematic_rows, working_dtype
from natattn.attention.layers import projection, projection_name
from natattn.attention.probe import AttentionProbe
from natattn.attention.site import AttentionSite
from natattn.distributed.ranks import Ranks
from natattn.fisher.kronecker import (
    FACTORS,
    FactorName,
    Rotary,
    first_sequences,
    kronecker_factors,
    matching_rotary,
)
from natattn.randomness import addressed_seed

_PREFIX = "factor/"
COMPARED = 16  # tokens that are compared to find the convention of a rotary embedding


class FisherProbe(AttentionProbe):
    """An ``AttentionProbe`` with exponential averages of Kronecker factors.

    Factors are captured on every ``capture_every``-th step from the first ``sequences`` sequences of the step's first
    forward pass in training mode. Padding tokens are excluded from attention's factors, but not from covariances.
    Rotary embedding is taken into account if the attention layer receives it as ``position_embeddings`` (Llama, Qwen,
    Cohere, GLM and their relatives), in either convention; otherwise the factors take the form without.

    Args:
        model: a transformers ``PreTrainedModel``.
        factors: attention factors to keep, of every observed layer.
        covariances: names of linear modules; the covariance mean x xᵀ of their inputs is kept.
        capture_every: steps between captures.
        sequences: number of sequences of a batch that a capture reads.
        capture_rows: query rows sampled per sequence in a capture; None for all.
        decay: of the exponential averages over captures, in [0, 1); they are bias-corrected.
        shared_key_input: keep one A_K for all heads of a layer, at a fraction of the cost.
        ranks: the processes that share each batch, in their order. ``sequences`` counts those of the whole batch; the
            captures of each rank enter the averages of all in ``reduce``, once per step after its forward passes. With
            gradient accumulation, the first sequences are those of the ranks' first slices.
        quantities, others: of ``AttentionProbe``.

    Raises: ValueError for arguments out of range, KeyError for an unknown factor.
    """

    def __init__(
        self,
        model: Any,
        *,
        factors: Collection[FactorName] = (),
        covariances: Collection[str] = (),
        capture_every: int = 5,
        sequences: int = 4,
        capture_rows: int | None = 32,
        decay: float = 0.9,
        shared_key_input: bool = True,
        ranks: Ranks | None = None,
        quantities: Collection[str] = (),
        **others: Any,
    ) -> None:
        _check(factors, decay, capture_every=capture_every, sequences=sequences, capture_rows=capture_rows)
        self.factors = tuple(factors)
        self.covariances = tuple(covariances)
        self.capture_every = capture_every
        self.capture_rows = capture_rows
        self.shared_key_input = shared_key_input
        self._averages = RunningAverages(decay, sequences, ranks or Ranks())
        self.captures = 0  # steps that were captured so far
        self.capturing = False
        self._offset = 0.5
        # Of the current capture: the inputs of projections, and what a compiled pass leaves to be entered after it.
        self._inputs: dict[str, Tensor] = {}
        self._moments: dict[str, tuple[Tensor, int, int]] = {}
        self._attention: dict[int, tuple[AttentionInputs, int]] = {}
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}  # cos and sin of the current capture
        self._seen: set[str] = set()
        if not (quantities or factors):
            others["layers"] = ()  # input covariances alone do not read attention
        super().__init__(model, quantities=quantities, **others)
        self._handles: list[RemovableHandle] = []
        try:
            self._handles.extend(self._hooks(covariances))
        except BaseException:
            self.detach()
            raise

    def average(self, owner: str | int, name: str) -> Tensor | None:
        """Return a factor's bias-corrected average, [heads or 1, dim, dim]: the identity if no factor was finite.

        Args:
            owner: index of an attention layer, or name of a module whose input covariance is kept.
            name: one of the factors, or "covariance".

        Returns: None before its first capture: for a layer that no forward pass has reached in training mode, and
            always for cross-attention, which is not observed.
        Raises: KeyError for a factor that is not kept.
        """
        if owner not in self.covariances if name == "covariance" else name not in self.factors:
            raise KeyError(f"the probe keeps no {name} of {owner}")
        return self._averages.average(f"{owner}.{name}")

    @property
    def skipped(self) -> dict[str, int]:
        """Number of captures of single heads that were skipped because they were not finite, by factor."""
        return self._averages.skipped

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Observe a step as ``AttentionProbe`` does; on due steps the first forward pass also enters the averages."""
        due = step % self.capture_every == 0
        if due:
            self._offset = addressed_seed(self.seed, "captured rows", step) / 2**63
            self._begin()
        try:
            with super().step(step):
                yield
            if due:
                self._enter_compiled()
        finally:
            if due:
                self._end()

    def reduce(self, ranks: Ranks | None = None) -> None:
        """Reduce as ``AttentionProbe`` does, and enter the captures of all ranks into the averages.

        Factors are means over query rows, covariances over tokens; the ranks' numbers of these are the weights.
        """
        ranks = ranks or Ranks.of_group()
        super().reduce(ranks)
        self._averages.reduce(ranks)

    def detach(self) -> None:
        """Remove the probe from the model."""
        super().detach()
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the last recorded statistics, and the averages."""
        own = {"captures": torch.tensor(self.captures), **self._averages.state_dict()}
        return super().state_dict() | {_PREFIX + name: tensor for name, tensor in own.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        own = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        super().load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_PREFIX)})
        self.captures = int(own.pop("captures", torch.tensor(0)))
        self._averages.load_state_dict(own)

    def _begin(self) -> None:
        self.capturing = True
        self._seen.clear()
        for site in self.sites if self.factors else ():
            site.capture = self._capture_attention

    def _enter_compiled(self) -> None:
        """Enter the captures of a compiled forward pass."""
        for name, (moment, rows, batch) in self._moments.items():
            self._averages.enter(f"{name}.covariance", moment, rows, batch)
        for site in self.sites:
            if site.layer in self._attention:
                self._enter_attention(site, *self._attention[site.layer])

    def _end(self) -> None:
        self.capturing = False
        if self._seen:
            self.captures += 1
        self._moments.clear()
        self._attention.clear()
        self._inputs.clear()
        self._rotary.clear()
        for site in self.sites:
            site.capture = None

    def _hooks(self, covariances: Collection[str]) -> Iterator[RemovableHandle]:
        weighted = {name for name, module in self.model.named_modules() if getattr(module, "weight", None) is not None}
        for wanted in covariances:
            if wanted not in weighted:
                raise ValueError(f"covariances: the model has no module {wanted!r} with a weight")
        projections = set()
        for site in self.sites if self.factors else ():
            attention = self.model.get_submodule(site.name)
            for which in ("query", "key"):
                name = projection_name(attention, which)  # type: ignore[arg-type]
                if name is None:
                    raise ValueError(f"{site.name}: its {which} projection was not found; the factors need its input")
                projections.add(f"{site.name}.{name}")
            yield attention.register_forward_pre_hook(self._rotary_hook(site.layer), with_kwargs=True)
        for name in sorted(projections | set(covariances)):
            hook = self._input_hook(name, keep=name in projections, average=name in covariances)
            yield self.model.get_submodule(name).register_forward_pre_hook(hook)

    def _input_hook(self, name: str, *, keep: bool, average: bool) -> Any:
        owner = self.model.get_submodule(name)

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            # Copies of the model have copies of the hooks, which must not capture.
            if not (self.capturing and module.training and module is owner):
                return
            batch = arguments[0].shape[0]
            inputs = arguments[0].detach()[: self._averages.own_sequences(batch)]
            if keep:
                self._inputs.setdefault(name, inputs)
            if average and name not in self._seen:
                self._seen.add(name)
                rows = inputs.flatten(0, -2)
                moment = _mean_outer_product(rows)
                # A compiled pass leaves its tensors here: changing averages inside it would recompile for each of their
                # states.
                if torch.compiler.is_compiling():
                    self._moments[name] = moment, rows.shape[0], batch
                else:
                    self._averages.enter(f"{name}.covariance", moment, rows.shape[0], batch)

        return hook

    def _rotary_hook(self, layer: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            embeddings = keywords.get("position_embeddings")
            if self.capturing and embeddings is not None:
                cos, sin = (part.detach()[: self._averages.own_sequences(part.shape[0])] for part in embeddings)
                self._rotary[layer] = cos, sin

        return hook

    def _capture_attention(self, site: AttentionSite, inputs: AttentionInputs) -> None:
        if site.name in self._seen or not self.model.get_submodule(site.name).training:
            return
        self._seen.add(site.name)
        batch = inputs.query.shape[0]
        inputs = first_sequences(inputs, self._averages.own_sequences(batch))
        if torch.compiler.is_compiling():
            self._attention[site.layer] = inputs, batch
        else:
            self._enter_attention(site, inputs, batch)

    @torch.no_grad()
    def _enter_attention(self, site: AttentionSite, inputs: AttentionInputs, batch: int) -> None:
        module = self.model.get_submodule(site.name)
        _, counted_rows = inputs.count_pairs_and_rows()
        length = inputs.length
        count = min(self.capture_rows or length, length)
        rows = systematic_rows(length, count, self._offset if count < length else 0.0, inputs.query.device)
        query_input, key_input = (
            self._inputs[f"{site.name}.{projection_name(module, which)}"]  # type: ignore[arg-type]
            for which in ("query", "key")
        )
        factors = kronecker_factors(
            inputs,
            query_input,
            rows,
            wanted=self.factors,
            rotary=self._rotary_of(site, inputs, query_input),
            key_input_BSN=None if key_input is query_input else key_input,
            shared_key_input=self.shared_key_input,
            counted_rows=counted_rows,
        )
        for name, factor in factors.items():
            self._averages.enter(f"{site.layer}.{name}", factor, counted_rows, batch)

    def _rotary_of(self, site: AttentionSite, inputs: AttentionInputs, query_input: Tensor) -> Rotary | None:
        """Return the layer's rotations; rotating the first queries shows which convention it has."""
        if site.layer not in self._rotary:
            return None
        query = projection(self.model.get_submodule(site.name), "query")
        assert query is not None
        weight, *bias = (part.detach() for part in query)
        before = torch.nn.functional.linear(query_input[:1, :COMPARED].to(weight.dtype), weight, *bias)
        before_BHLD = before.view(1, -1, inputs.query.shape[1], inputs.query.shape[-1]).transpose(1, 2)
        return matching_rotary(*self._rotary[site.layer], before_BHLD, inputs.query[:1, :, :COMPARED])


@dataclass(eq=False)
class RunningAverage:
    """Exponential average of one factor for each of its heads; updating it never synchronises with the device.

    Attributes:
        total: sum of the finite factors with exponential weights, [heads, dim, dim].
        weight: sum of these weights, [heads].
        skipped: number of factors of each head that were not finite.
    """

    total: Tensor
    weight: Tensor
    skipped: Tensor

    @classmethod
    def start(cls, factor: Tensor) -> Self:
        """Return the average of no factors."""
        heads = factor.shape[0]
        return cls(torch.zeros_like(factor), factor.new_zeros(heads), factor.new_zeros(heads, dtype=torch.int64))

    def enter(self, factor: Tensor, decay: float) -> None:
        """Enter a factor; a head whose factor is not finite keeps its average."""
        finite = factor.isfinite().all(-1).all(-1)
        kept = finite[:, None, None]
        self.total = torch.where(kept, torch.lerp(factor, self.total, decay), self.total)
        self.weight = torch.where(finite, decay * self.weight + (1 - decay), self.weight)
        self.skipped = self.skipped + ~finite

    def average(self) -> Tensor:
        """Return the bias-corrected average, [heads, dim, dim]; the identity for a head without a finite factor yet."""
        identity = torch.eye(self.total.shape[-1], dtype=self.total.dtype, device=self.total.device)
        weight = self.weight[:, None, None]
        return torch.where(weight > 0, self.total / weight, identity)


class RunningAverages:
    """The averages of several factors, by name.

    With several ranks, each captures from its part of the batch; ``reduce`` combines the captures, so that all ranks
    keep the same averages.

    Args:
        decay: of the averages, in [0, 1); they are bias-corrected.
        sequences: number of sequences that are captured, the first ones of the whole batch.
        ranks: the processes that share each batch, in their order.
    """

    def __init__(self, decay: float, sequences: int, ranks: Ranks) -> None:
        self.decay = decay
        self.sequences = sequences
        self.ranks = ranks
        self._averages: dict[str, RunningAverage] = {}
        self._captured: dict[str, tuple[Tensor, Tensor]] = {}  # factors that are not reduced yet, and their weights

    def own_sequences(self, batch: int) -> int:
        """Return how many of this rank's sequences are captured: at least one, possibly with weight 0."""
        return min(max(self.sequences - self.ranks.rank * batch, 1), batch)

    def enter(self, name: str, factor: Tensor, rows: Tensor | int, batch: int) -> None:
        """Enter a factor that is a mean over ``rows``, from a forward pass over ``batch`` sequences."""
        if self.ranks.size == 1:
            self._enter(name, factor)
            return
        counts = self.ranks.rank * batch < self.sequences
        weight = torch.as_tensor(rows, dtype=factor.dtype, device=factor.device).mean() * counts
        # A rank without captured sequences contributes only the shape of the factor.
        self._captured[name] = (factor if counts else torch.zeros_like(factor)), weight

    def reduce(self, ranks: Ranks) -> None:
        """Enter the captures of all ranks, as means weighted by their numbers of rows.

        If the mask differs between heads, the weight is the mean number of rows.
        """
        if self._captured:
            names, parts = list(self._captured), list(self._captured.values())
            self._captured = {}
            weighted = ranks.sum([factor * weight for factor, weight in parts] + [weight for _, weight in parts])
            factors, weights = weighted[: len(names)], weighted[len(names) :]
            for name, factor, weight in zip(names, factors, weights, strict=True):
                self._enter(name, factor / weight)

    def average(self, name: str) -> Tensor | None:
        """Return the average of ``RunningAverage``; None if no factor has been entered."""
        running = self._averages.get(name)
        return None if running is None else running.average()

    @property
    def skipped(self) -> dict[str, int]:
        """Number of captures of single heads that were skipped because they were not finite, by factor."""
        return {name: int(average.skipped.sum()) for name, average in self._averages.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages as tensors under flat names."""
        return {
            f"{name}/{field.name}": getattr(average, field.name)
            for name, average in self._averages.items()
            for field in fields(average)
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        names = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
        self._averages = {
            name: RunningAverage(*(tensors[f"{name}/{field.name}"].clone() for field in fields(RunningAverage)))
            for name in names
        }

    def _enter(self, name: str, factor: Tensor) -> None:
        if name not in self._averages:
            self._averages[name] = RunningAverage.start(factor)
        self._averages[name].enter(factor, self.decay)


def _check(factors: Collection[str], decay: float, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay}: must be in [0, 1)")
    for factor in factors:
        if factor not in FACTORS:
            raise KeyError(f"unknown factor {factor!r}. Use {', '.join(FACTORS)}")


def _mean_outer_product(rows: Tensor) -> Tensor:
    """Return mean x xᵀ over rows [M, N], as one head: [1, N, N]."""
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(working_dtype(rows))
        return (rows.mT @ rows)[None] / rows.shape[0]
