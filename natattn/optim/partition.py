"""The matrices of a model: every trainable parameter as one matrix, or as several if it fuses query, key and value."""

import re
from typing import Any

from torch import nn

from natattn.attention.layers import attention_layers, head_counts
from natattn.optim.matrix import Matrix, Role

_FUSED = re.compile(r"(^|\.)c_attn$")
# Fused too, but in layouts (interleaved heads, grouped keys) that equal parts would cut wrongly.
_FUSED_UNKNOWN_LAYOUT = re.compile(r"(^|\.)(c_attn|qkv|qkv_proj|query_key_value|W_pack)$")
_ROLE_BY_MODULE_NAME: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(^|\.)(q_proj|q_lin|q_attn|query)$"), "query"),
    (re.compile(r"(^|\.)(k_proj|k_lin|key)$"), "key"),
    (re.compile(r"(^|\.)(v_proj|v_lin|value)$"), "value"),
    (re.compile(r"attn\.(c_proj|o_proj|out_proj|dense)$|attention\.(output\.)?(dense|o_proj|out_lin)$"), "output"),
)


def partition(model: Any) -> list[Matrix]:
    """Return the matrices of every trainable parameter of a transformers model (an nn.Module), complete and disjoint.

    Weights of linear maps are matrices. Those outside the blocks (the output embedding, poolers, classifiers) have the
    role head. Everything that is neither a linear map nor an embedding (biases, norms, convolutions, experts in one
    tensor) is a vector.

    Raises: ValueError naming a fused query-key-value weight whose layout is unknown.
    """
    attention = attention_layers(model, cross_attention=True)
    layer_of_block = {
        block: found.layer for found in attention if not found.is_cross_attention and (block := _block(found.name))
    }
    output_embeddings = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    matrices: list[Matrix] = []
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        number = next((int(part) for part in module_name.split(".") if part.isdigit()), None)
        layer, counts = layer_of_block.get(_block(module_name), number), None
        for found in attention:
            if module_name.startswith(f"{found.name}."):
                layer, counts = found.layer, head_counts(found.module)
        transposed = type(module).__name__ == "Conv1D"  # transformers' Conv1D stores (inputs, outputs)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            name = f"{module_name}.{parameter_name}".lstrip(".")
            is_linear = parameter.ndim == 2 and (transposed or isinstance(module, nn.Linear))
            if isinstance(module, nn.Embedding):
                matrices.append(Matrix(name, parameter, "embedding", layer, module_name))
            elif not is_linear:
                matrices.append(Matrix(name, parameter, "vector", layer, module_name))
            elif module is output_embeddings:
                matrices.append(Matrix(name, parameter, "head", layer, module_name))
            elif transposed and _FUSED.search(module_name):
                # GPT-2's cross-attention has a projection of its own for the queries.
                parent = model.get_submodule(module_name.rpartition(".")[0])
                roles: tuple[Role, ...] = ("key", "value") if hasattr(parent, "q_attn") else ("query", "key", "value")
                size = parameter.shape[1] // len(roles)
                for index, role in enumerate(roles):
                    heads, cut = _heads(role, counts), (1, index * size, (index + 1) * size)
                    matrices.append(
                        Matrix(f"{name}[{role}]", parameter, role, layer, module_name, heads, *cut, transposed=True)
                    )
            else:
                if _FUSED_UNKNOWN_LAYOUT.search(module_name):
                    raise ValueError(f"parameter {name}: the layout of this fused query-key-value weight is unknown")
                other: Role = "head" if number is None else "mlp"
                role = next((role for pattern, role in _ROLE_BY_MODULE_NAME if pattern.search(module_name)), other)
                heads = _heads(role, counts)
                matrices.append(Matrix(name, parameter, role, layer, module_name, heads, transposed=transposed))
    check_partition(matrices, model)
    return matrices


def check_partition(matrices: list[Matrix], model: nn.Module) -> None:
    """Raise ValueError unless the matrices cover every element of every trainable parameter exactly once."""
    covered: dict[int, int] = {}
    for matrix in matrices:
        key = id(matrix.parameter)
        covered[key] = covered.get(key, 0) + matrix.of(matrix.parameter).numel()
    for name, parameter in model.named_parameters():
        count = covered.get(id(parameter), 0)
        if parameter.requires_grad and count != parameter.numel():
            raise ValueError(f"parameter {name}: {count} of {parameter.numel()} elements in groups")


def _heads(role: Role, counts: tuple[int, int] | None) -> int | None:
    """Return the heads of an attention matrix from the layer's numbers of query heads and of key heads."""
    if counts is None or role not in ("query", "key", "value", "output"):
        return None
    return counts[role in ("key", "value")]


def _block(module_name: str) -> str:
    """Return a module's name up to its first number: transformer.h.3.attn → transformer.h.3; empty outside blocks."""
    match = re.match(r"(.*?\.\d+)(\.|$)", module_name)
    return match.group(1) if match else ""
