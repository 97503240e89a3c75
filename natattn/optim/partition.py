"""Named parameters → roles: every parameter of a model has exactly one owner and one or more roles.

Weights that fuse query, key and value are seen as separate matrices through views, so that no optimizer mixes them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from natattn.attention.layers import attention_layers, head_counts

Role = Literal["embedding", "vector", "query", "key", "value", "output", "mlp", "head"]
ROLES: tuple[Role, ...] = get_args(Role)
HIDDEN_ROLES: frozenset[Role] = frozenset({"query", "key", "value", "output", "mlp"})

_HEADED = ("query", "key", "value", "output")
_FUSED = re.compile(r"(^|\.)c_attn$")
# Fused too, but in layouts (interleaved heads, grouped keys) that equal parts would cut wrongly.
_FUSED_UNKNOWN_LAYOUT = re.compile(r"(^|\.)(qkv|qkv_proj|query_key_value|W_pack)$")
_ROLE_BY_MODULE_NAME: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(^|\.)(q_proj|q_lin|q_attn|query)$"), "query"),
    (re.compile(r"(^|\.)(k_proj|k_lin|key)$"), "key"),
    (re.compile(r"(^|\.)(v_proj|v_lin|value)$"), "value"),
    (re.compile(r"attn\.(c_proj|o_proj|out_proj|dense)$|attention\.(output\.)?(dense|o_proj|out_lin)$"), "output"),
)


@dataclass(frozen=True)
class ParameterView:
    """One matrix or vector as an optimizer sees it: a whole parameter or a slice of a fused one.

    Attributes:
        name: the parameter's name, with the role appended for a slice of a fused weight.
        layer: index of the self-attention layer of its block, None outside blocks.
        module: name of the module that it is a parameter of.
        heads: heads that the rows (query, key, value) or columns (output) of an attention matrix belong to.
        start, stop, dim: the slice of the stored tensor; ``dim`` is None for a whole parameter.
        transposed: stored as (inputs, outputs) and shown as (outputs, inputs), like nn.Linear.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    layer: int | None
    dim: int | None = None
    start: int = 0
    stop: int = 0
    transposed: bool = False
    module: str = ""
    heads: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """This view of a tensor that is shaped like the parameter (the parameter, its gradient, its update)."""
        part = tensor if self.dim is None else tensor.narrow(self.dim, self.start, self.stop - self.start)
        return part.t() if self.transposed else part

    @property
    def state_prefix(self) -> str:
        """Prefix of this view's entries in the parameter's optimizer state: empty for a whole parameter."""
        return "" if self.dim is None else f"{self.role}."


def partition(model: Any) -> list[ParameterView]:
    """Views of every trainable parameter of a transformers model (an nn.Module), complete and disjoint.

    Matrices are weights of linear maps. Those outside the blocks (the output embedding, poolers, classifiers) have the
    role head; everything else that is no embedding (biases, norms, convolutions, experts in one tensor) is a vector.

    Raises: ValueError naming a fused query-key-value weight whose layout is not known.
    """
    views: list[ParameterView] = []
    blocks = _Blocks(model)
    output_embeddings = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            name = f"{module_name}.{parameter_name}".lstrip(".")
            has_own_query = hasattr(_parent(model, module_name), "q_attn")
            own = _views(
                name, module_name, module, parameter, is_head=module is output_embeddings, has_own_query=has_own_query
            )
            views.extend(blocks.placed(view, module_name) for view in own)
    check_partition(views, model)
    return views


class _Blocks:
    """Which attention layer a module belongs to."""

    def __init__(self, model: nn.Module) -> None:
        self._attention = attention_layers(model, cross_attention=True)
        self._layer_of_block = {
            block: found.layer
            for found in self._attention
            if not found.is_cross_attention and (block := _block(found.name))
        }

    def placed(self, view: ParameterView, module_name: str) -> ParameterView:
        """The view with its module, its layer as a probe numbers it, and its heads."""
        layer = self._layer_of_block.get(_block(module_name), view.layer)
        heads = None
        for found in self._attention:
            if module_name.startswith(f"{found.name}."):
                layer = found.layer
                counts = head_counts(found.module)
                if counts is not None and view.role in _HEADED:
                    heads = counts[view.role in ("key", "value")]
        return replace(view, module=module_name, layer=layer, heads=heads)


def _block(module_name: str) -> str:
    """A module's name up to its first number: transformer.h.3.attn → transformer.h.3; empty outside blocks."""
    match = re.match(r"(.*?\.\d+)(\.|$)", module_name)
    return match.group(1) if match else ""


def _parent(model: nn.Module, module_name: str) -> nn.Module:
    return model.get_submodule(module_name.rpartition(".")[0])


def check_partition(views: list[ParameterView], model: nn.Module) -> None:
    """Assert that the views cover every element of every trainable parameter exactly once.

    Raises: ValueError naming the parameter that is missed or covered twice.
    """
    covered: dict[int, int] = {}
    for view in views:
        covered[id(view.parameter)] = covered.get(id(view.parameter), 0) + view.of(view.parameter).numel()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and covered.get(id(parameter), 0) != parameter.numel():
            raise ValueError(
                f"parameter {name}: {covered.get(id(parameter), 0)} of {parameter.numel()} elements in groups"
            )


def _views(
    name: str, module_name: str, module: nn.Module, parameter: nn.Parameter, *, is_head: bool, has_own_query: bool
) -> Iterator[ParameterView]:
    layer = _layer_index(module_name)
    # transformers' Conv1D stores (inputs, outputs).
    transposed = type(module).__name__ == "Conv1D"
    if isinstance(module, nn.Embedding):
        yield ParameterView(name, parameter, "embedding", layer)
    elif parameter.ndim != 2 or not (transposed or isinstance(module, nn.Linear)):
        yield ParameterView(name, parameter, "vector", layer)
    elif is_head:
        yield ParameterView(name, parameter, "head", layer)
    elif transposed and _FUSED.search(module_name):
        # GPT-2's cross-attention has a projection of its own for the queries.
        roles: tuple[Role, ...] = ("key", "value") if has_own_query else ("query", "key", "value")
        part = parameter.shape[1] // len(roles)
        for index, role in enumerate(roles):
            yield ParameterView(f"{name}[{role}]", parameter, role, layer, 1, index * part, (index + 1) * part, True)
    else:
        yield ParameterView(name, parameter, _matrix_role(name, module_name, layer), layer, transposed=transposed)


def _matrix_role(name: str, module_name: str, layer: int | None) -> Role:
    if _FUSED_UNKNOWN_LAYOUT.search(module_name) or _FUSED.search(module_name):
        raise ValueError(f"parameter {name}: a fused query-key-value weight whose layout is not known")
    for pattern, role in _ROLE_BY_MODULE_NAME:
        if pattern.search(module_name):
            return role
    return "head" if layer is None else "mlp"


def _layer_index(module_name: str) -> int | None:
    """The first number in a dotted module name: transformer.h.3.attn → 3."""
    return next((int(part) for part in module_name.split(".") if part.isdigit()), None)
