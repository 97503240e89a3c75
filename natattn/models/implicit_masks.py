"""Forward passes with one sequence per row, without the masks that transformers makes when it cannot know that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

_ignores_causal_mask = masking_utils._ignore_causal_mask_sdpa


@contextmanager
def one_sequence_per_row() -> Iterator[None]:
    """Have transformers' models take each row for one sequence, and keep a causal mask without padding implicit.

    By default, transformers checks whether the positions of a row restart. In an eager model that waits for the device
    in every forward pass. A compiled model cannot check and gets a mask of [batch, 1, length, length] instead of
    ``is_causal=True``, which rules out the kernels that never write such a matrix. Padding masks are unaffected.
    """
    previous = {name: getattr(masking_utils, name) for name in _REPLACEMENTS}
    try:
        for name, function in _REPLACEMENTS.items():
            setattr(masking_utils, name, function)
        yield
    finally:
        for name, function in previous.items():
            setattr(masking_utils, name, function)


def _no_packed_sequences(position_ids: Tensor) -> None:
    return None


def _is_causal_alone(padding_mask: Tensor | None, query_length: int, key_length: int, *others: Any) -> bool:
    """Return whether ``is_causal`` replaces the mask; ``others`` are offsets and the size of local attention."""
    if torch.compiler.is_compiling():
        return padding_mask is None and query_length == key_length and not any(others)
    ignored: bool = _ignores_causal_mask(padding_mask, query_length, key_length, *others)
    return ignored


_REPLACEMENTS = {
    "find_packed_sequence_indices": _no_packed_sequences,
    "_ignore_causal_mask_sdpa": _is_causal_alone,
}
