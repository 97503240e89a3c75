"""Attention and what can be observed of it: energies, attention functions for transformers, the probe."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natattn.attention.probe import AttentionProbe
    from natattn.attention.types.registry import register

__all__ = ["AttentionProbe", "register"]

_HOMES = {"AttentionProbe": "natattn.attention.probe", "register": "natattn.attention.types.registry"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: transformers and torch are heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
