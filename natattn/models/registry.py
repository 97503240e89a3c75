"""The architectures of this package that transformers' Auto classes cannot load by themselves."""

from pkgutil import resolve_name

_REGISTRATIONS = ("natattn.published.model:register",)


def register_architectures() -> None:
    """Let transformers' Auto classes load saved models of this package's own architectures; harmless when repeated."""
    for name in _REGISTRATIONS:
        resolve_name(name)()
