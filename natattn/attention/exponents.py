"""Exponents α_k of critical temperatures: numbers, or what `natattn analyze` fitted to models of several widths."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from natattn.storage.documents import read_json

# Of the fitted table: the scores as the models have them, and the peak that every head has.
_FITTED = ("scores frozen", "heat capacity")


def read_exponents(value: Any) -> Any:
    """α of every rank of head from an analysis.json with a section `widths`; anything else is left as it is.

    Heads have no names that two models share, so that the head of number k gets the exponent of rank k.

    Raises: ValueError where the file cannot be read or holds no such fit.
    """
    if not (isinstance(value, str) and value.endswith(".json")):
        return value
    try:
        analysis = read_json(Path(os.path.expanduser(value)))
        table = analysis["sections"]["widths"]["tables"][0]
        rows = [dict(zip(table["headings"], row, strict=True)) for row in table["rows"]]
        fitted = [row for row in rows if (row["scan"], row["T_c by"]) == _FITTED and row["k"].startswith("rank ")]
        found = tuple(float(row["α"]) for row in sorted(fitted, key=lambda row: int(row["k"].removeprefix("rank "))))
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"{value}: no analysis of several widths (natattn analyze runs=… sections=[widths])") from None
    if not found:
        raise ValueError(f"{value}: no exponents by rank: its models have different numbers of heads")
    return found


Exponents = Annotated[float | tuple[float, ...], BeforeValidator(read_exponents)]
