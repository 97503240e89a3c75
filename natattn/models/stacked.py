"""Several GPT-2 of one shape as one computation: every parameter stacked, one batch for all of them.

The parameters of the ordinary models become views into the stacked tensors, so that whatever reads or changes an
ordinary model (evaluation, checkpoints, QK-clip) reads and changes the stack. Attention needs no change: the sequences
of model s are those from s·B to (s + 1)·B of the joint batch. What observes an ordinary model (the sites of a probe,
the hooks on its linear maps) is shown that model's part of the joint batch.

Shape suffixes: S models, B sequences of each, L tokens, N and M features, V tokens of the vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natattn.attention.modules import (
    PARAMETERS_ATTRIBUTE,
    SITE_ATTRIBUTE,
    STABILISERS_ATTRIBUTE,
    attention_layers,
)
from natattn.attention.stacked_site import StackedSite
from natattn.models.stacked_loss import mean_cross_entropies

_EMBEDDING = "transformer.wte.weight"


class StackedGPT2(nn.Module):
    """The forward pass of several ``GPT2LMHeadModel`` of one configuration, without dropout and cache.

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

    def losses(self, tokens: Tensor) -> Tensor:
        """Mean next-token loss in nats of every model, [S], of int64 tokens [S·B, L + 1]."""
        count = len(self.models)
        hidden_SMN = self(tokens[:, :-1]).view(count, -1, self.stacks[_EMBEDDING].shape[-1])
        return mean_cross_entropies(hidden_SMN, self.template.lm_head.weight, tokens[:, 1:].reshape(count, -1))

    def forward(self, tokens: Tensor) -> Tensor:
        """What the output embeddings read, [S·B, L, N], of int64 tokens [S·B, L]."""
        transformer = self.template.transformer
        count, length = len(self.models), tokens.shape[1]
        positions_SLN = transformer.wpe.weight[:, :length]
        hidden: Tensor = transformer.wte(tokens)
        hidden = (hidden.view(count, -1, *hidden.shape[1:]) + positions_SLN[:, None]).flatten(0, 1)
        for block in transformer.h:
            hidden = block(hidden)
        final: Tensor = transformer.ln_f(hidden)
        return final

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
    """What computes a leaf of all models at once.

    Raises: ValueError for a leaf of an unknown kind.
    """
    if isinstance(module, nn.Embedding):
        return _StackedEmbedding(own["weight"])
    if isinstance(module, nn.LayerNorm):
        return _StackedLayerNorm(own["weight"], own["bias"], module.eps)
    if type(module).__name__ == "Conv1D" or isinstance(module, nn.Linear):
        return _StackedLinear(own["weight"], own.get("bias"), inputs_first=not isinstance(module, nn.Linear))
    raise ValueError(f"{type(module).__name__} has parameters and cannot be stacked")


class _StackedEmbedding(nn.Module):
    def __init__(self, weight_SVN: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_SVN

    def forward(self, tokens: Tensor) -> Tensor:
        """[S·B, L, N]: every model looks up in its own table."""
        count, size, _ = self.weight.shape
        first = torch.arange(0, count * size, size, device=tokens.device)
        rows = (tokens.reshape(count, -1) + first[:, None]).view(tokens.shape)
        return nn.functional.embedding(rows, self.weight.flatten(0, 1))


class _StackedLayerNorm(nn.Module):
    def __init__(self, weight_SN: nn.Parameter, bias_SN: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight_SN, bias_SN, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[S·B, L, N]."""
        normal = nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=self.eps)
        normal_SMN = normal.view(self.weight.shape[0], -1, hidden.shape[-1])
        return torch.addcmul(self.bias[:, None], normal_SMN, self.weight[:, None]).view_as(hidden)


class _StackedLinear(nn.Module):
    def __init__(self, weight: nn.Parameter, bias_SM: nn.Parameter | None, *, inputs_first: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.inputs_first = weight, bias_SM, inputs_first

    def forward(self, hidden: Tensor) -> Tensor:
        """[S·B, L, M]."""
        rows = hidden.reshape(self.weight.shape[0], -1, hidden.shape[-1])
        matrix_SNM = self.weight if self.inputs_first else self.weight.mT
        if self.bias is None:
            result = torch.bmm(rows, matrix_SNM)
        else:
            result = torch.baddbmm(self.bias[:, None], rows, matrix_SNM)
        return result.view(*hidden.shape[:-1], -1)


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
    """What hangs on the models' attention layers: parameters and stabilisers, alike in all, and the sites of each."""
    for attribute in (PARAMETERS_ATTRIBUTE, STABILISERS_ATTRIBUTE):
        if attribute in vars(originals[0]):
            setattr(stacked, attribute, vars(originals[0])[attribute])
    sites = [vars(original).get(SITE_ATTRIBUTE) for original in originals]
    if any(site is not None for site in sites):
        setattr(stacked, SITE_ATTRIBUTE, StackedSite([site for site in sites if site is not None]))
