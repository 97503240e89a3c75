"""Several GPT-2 of one shape as one computation: every parameter stacked, one batch for all of them.

The parameters of the ordinary models become views into the stacked tensors, so that whatever reads or changes an
ordinary model (evaluation, checkpoints, QK-clip) reads and changes the stack. Attention needs no change: the sequences
of model s are those from s·B to (s + 1)·B of the joint batch. What observes an ordinary model (the sites of a probe,
the hooks on its linear maps) is shown that model's part of the joint batch.

Shape suffixes: S models, B sequences of each, L tokens, N and M features, V tokens of the vocabulary.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natattn.attention.layers import PARAMETERS_ATTRIBUTE, SITE_ATTRIBUTE, STABILISERS_ATTRIBUTE, attention_layers
from natattn.stacked.loss import mean_cross_entropies
from natattn.stacked.site import StackedSite

_TOKENS, _POSITIONS = "transformer.wte.weight", "transformer.wpe.weight"


class StackedGPT2(nn.Module):
    """The training pass of several ``GPT2LMHeadModel`` of one configuration, without dropout and cache.

    Args:
        models: on one device and in one dtype, with their probes attached; their parameters become views into the
            stacks and their gradients are the stacks' own.

    Attributes:
        stacks: the stacked parameters [S, ...] by the name that they have in one model, tied ones once.

    Raises: ValueError for models of another architecture, or with dropout.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        check_stackable(models[0])
        self.models = list(models)
        self.stacks = {name: _stack(parameters) for name, parameters in _by_name(models).items()}
        template = _template(models[0])
        by_identity = {id(p): self.stacks[name] for name, p in models[0].named_parameters()}
        for name, module in models[0].named_modules():
            own = {key: by_identity[id(p)] for key, p in module.named_parameters(recurse=False)}
            if own:
                replacement = _stacked_module(module, own)
                template.set_submodule(name, replacement)
                _forward_hooks(replacement, [model.get_submodule(name) for model in models])
        for found in attention_layers(models[0]):
            _dress(template.get_submodule(found.name), [model.get_submodule(found.name) for model in models])
        self.template = template.train()

    def backward(
        self,
        tokens: Tensor,
        share: float = 1.0,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> Tensor:
        """Add the gradients of ``share`` times every model's mean next-token loss to those of the stacks.

        Args:
            tokens: int64 [S·B, L + 1].
            autocast: what the forward pass is made in.

        Returns: the losses times ``share`` in nats, [S].
        """
        count, width = len(self.models), self.stacks[_TOKENS].shape[-1]
        table_SVN = self.stacks[_TOKENS]
        rows = self._rows(tokens[:, :-1])
        # Its gradient is added to the few rows that were read, instead of to a table of zeros and that to the other.
        embedded = table_SVN.data.flatten(0, 1)[rows].requires_grad_()
        labels_SM = tokens[:, 1:].reshape(count, -1)
        with autocast():
            hidden_SMN = self(embedded).view(count, -1, width)
            losses_S = mean_cross_entropies(hidden_SMN, self.template.lm_head.weight, labels_SM, share)
        losses_S.sum().backward()  # type: ignore[no-untyped-call]
        assert embedded.grad is not None
        if table_SVN.grad is None:  # not tied to the head
            table_SVN.grad = torch.zeros_like(table_SVN)
        table_SVN.grad.flatten(0, 1).index_add_(0, rows.flatten(), embedded.grad.flatten(0, 1))
        return losses_S.detach()

    def forward(self, embedded: Tensor) -> Tensor:
        """Return the input of the output embeddings for embedded tokens, both [S·B, L, N]."""
        transformer = self.template.transformer
        positions_SLN = self.stacks[_POSITIONS][:, : embedded.shape[1]]
        hidden = embedded.view(len(self.models), -1, *embedded.shape[1:]) + positions_SLN[:, None]
        hidden = hidden.flatten(0, 1)
        for block in transformer.h:
            hidden = block(hidden)
        final: Tensor = transformer.ln_f(hidden)
        return final

    def _rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of the tokens [S·B, L] in the concatenated tables of all models."""
        count, size, _ = self.stacks[_TOKENS].shape
        first = torch.arange(0, count * size, size, device=tokens.device)
        return (tokens.reshape(count, -1) + first[:, None]).view(tokens.shape)

    def release(self) -> None:
        """Give every model parameters of its own again, with the values that they have now."""
        for model in self.models:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
                parameter.grad = None


def check_stackable(model: Any) -> None:
    """Raises: ValueError for a model that ``StackedGPT2`` does not compute."""
    from transformers import GPT2LMHeadModel

    config = getattr(model, "config", None)
    if type(model) is not GPT2LMHeadModel or config is None or config.add_cross_attention:
        raise ValueError(f"{type(model).__name__} cannot be stacked; valid: GPT2LMHeadModel without cross-attention")
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        raise ValueError("a model with dropout cannot be stacked: its replicas would not draw as they do alone")


def _by_name(models: Sequence[Any]) -> dict[str, list[nn.Parameter]]:
    named = [dict(model.named_parameters()) for model in models]
    shapes = [{name: (p.shape, p.dtype, p.device) for name, p in each.items()} for each in named]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("models of different shapes, dtypes or devices cannot be stacked")
    return {name: [each[name] for each in named] for name in named[0]}


def _stack(parameters: list[nn.Parameter]) -> nn.Parameter:
    """The stacked parameter; the given ones become views into it."""
    stack = nn.Parameter(torch.stack([parameter.data for parameter in parameters]))
    for parameter, view in zip(parameters, stack.data.unbind(), strict=True):
        parameter.data = view
    return stack


def _template(model: Any) -> Any:
    """A model of the same configuration without weights, under the same attention function."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        return type(model)(config)


def _stacked_module(module: nn.Module, own: dict[str, nn.Parameter]) -> nn.Module:
    """Return the module that computes a leaf of all models at once.

    Raises: ValueError for a leaf of an unknown kind.
    """
    if isinstance(module, nn.Embedding | nn.Linear) and "bias" not in own:
        return _StackedWeight(own["weight"])
    if isinstance(module, nn.LayerNorm):
        return _StackedLayerNorm(own["weight"], own["bias"], module.eps)
    if type(module).__name__ == "Conv1D":
        return _StackedConv1D(own["weight"], own["bias"])
    raise ValueError(f"{type(module).__name__} has parameters and cannot be stacked")


class _StackedWeight(nn.Module):
    """Holds the stacked weight of an embedding or of the head: ``StackedGPT2`` looks up in it, or multiplies by it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


class _StackedLayerNorm(nn.Module):
    def __init__(self, weight_SN: nn.Parameter, bias_SN: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight_SN, bias_SN, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[S·B, L, N]."""
        normal = nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=self.eps)
        normal_SMN = normal.view(self.weight.shape[0], -1, hidden.shape[-1])
        return torch.addcmul(self.bias[:, None], normal_SMN, self.weight[:, None]).view_as(hidden)


class _StackedConv1D(nn.Module):
    """transformers' name for a linear layer of GPT-2, whose weight has the inputs first."""

    def __init__(self, weight_SNM: nn.Parameter, bias_SM: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight_SNM, bias_SM

    def forward(self, hidden: Tensor) -> Tensor:
        """[S·B, L, M]."""
        rows = hidden.reshape(self.weight.shape[0], -1, hidden.shape[-1])
        return torch.baddbmm(self.bias[:, None], rows, self.weight).view(*hidden.shape[:-1], -1)


def _forward_hooks(stacked: nn.Module, originals: list[nn.Module]) -> None:
    """Have the hooks that look at the models' inputs look at their parts of the joint input."""

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        parts = arguments[0].chunk(len(originals))
        for original, part in zip(originals, parts, strict=True):
            for observer in original._forward_pre_hooks.values():
                observer(original, (part,))

    if any(original._forward_pre_hooks for original in originals):
        stacked.register_forward_pre_hook(hook)


def _dress(stacked: nn.Module, originals: list[nn.Module]) -> None:
    """Attach the models' attention parameters and stabilisers, equal in all, and the sites of each."""
    for attribute in (PARAMETERS_ATTRIBUTE, STABILISERS_ATTRIBUTE):
        if attribute in vars(originals[0]):
            setattr(stacked, attribute, vars(originals[0])[attribute])
    sites = [vars(original).get(SITE_ATTRIBUTE) for original in originals]
    if any(site is not None for site in sites):
        setattr(stacked, SITE_ATTRIBUTE, StackedSite([site for site in sites if site is not None]))
