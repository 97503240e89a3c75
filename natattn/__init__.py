"""natattn: transformer training experiments in which attention informs the optimizer.

The public names are imported when they are first used: the command line must not wait for PyTorch to print its help.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natattn import attention
    from natattn.optim.fisher_muon import FisherMuon, NaturalMuon
    from natattn.published.attention import GPT2NaturalAttentionBlock, NaturalAttention
    from natattn.published.optimizer import AttentionInformedOptimizer
    from natattn.published.train_models import train_models

_HOMES = {
    "AttentionInformedOptimizer": "natattn.published.optimizer",
    "FisherMuon": "natattn.optim.fisher_muon",
    "GPT2NaturalAttentionBlock": "natattn.published.attention",
    "NaturalAttention": "natattn.published.attention",
    "NaturalMuon": "natattn.optim.fisher_muon",
    "train_models": "natattn.published.train_models",
}

__all__ = [
    "AttentionInformedOptimizer",
    "FisherMuon",
    "GPT2NaturalAttentionBlock",
    "NaturalAttention",
    "NaturalMuon",
    "attention",
    "train_models",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "attention":  # natattn.attention.register() after a plain `import natattn`
        return import_module("natattn.attention")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
