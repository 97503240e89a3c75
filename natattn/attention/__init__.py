"""Attention and what can be observed of it: energies, attention functions for transformers, the probe."""


def register() -> None:
    """Make ``attn_implementation="natural"`` and the other types known to transformers; harmless when repeated."""
    from natattn.attention.interface import register  # transformers is heavy and imported when it is needed

    register()
