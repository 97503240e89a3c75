"""Exponents α_k of critical temperatures: numbers, or those that `natattn analyze` fitted over several widths."""

import os
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from natattn.storage.documents import read_json

# Of the fits: the scores as the models have them, and the peak that every head has.
_FITTED = ("frozen", "heat_capacity")


def read_exponents(value: Any) -> Any:
    """Return α of every rank of head from an analysis.json with `widths`; return any other value unchanged.

    Heads have no names that two models share, so the head of number k gets the exponent of rank k.

    Raises: ValueError if the file cannot be read or holds no such fit.
    """
    if not (isinstance(value, str) and value.endswith(".json")):
        return value
    try:
        analysis = read_json(Path(os.path.expanduser(value)))
        fits = analysis["results"]["widths"]["exponents"]
        fits = [fit for fit in fits if (fit["kind"], fit["of"]) == _FITTED and fit["where"].startswith("rank ")]
        found = tuple(float(fit["alpha"]) for fit in sorted(fits, key=lambda fit: int(fit["where"][len("rank ") :])))
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"{value}: no analysis of several widths (natattn analyze runs=… sections=[widths])") from None
    if not found:
        raise ValueError(f"{value}: no exponents by rank: its models have different numbers of heads")
    return found


Exponents = Annotated[float | tuple[float, ...], BeforeValidator(read_exponents)]


def critical_temperatures(
    exponents: float | tuple[float, ...], width: int, heads: int, temperature: float = 1.0
) -> Tensor:
    """Return T_c(k) = T_0 (d/768)^(−α_k) of every head, float32 [heads] (Criticality and Phase Transitions, 3.2).

    Raises: ValueError if there are several exponents, but not one for each head.
    """
    values = torch.as_tensor(exponents, dtype=torch.float32).reshape(-1)
    if len(values) not in (1, heads):
        raise ValueError(f"{len(values)} exponents for {heads} heads")
    return (temperature * (width / 768) ** -values).expand(heads)
