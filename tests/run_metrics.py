"""What stands in the metrics file of a run, as tests read and compare it."""

import json
from pathlib import Path
from typing import Any

Record = tuple[int, str | None, str, Any]


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of it."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def records(folder: Path) -> list[Record]:
    """(step, arm, name, value) of every line but those of the clock: what two runs of the same have in common."""
    return without_clock(lines(folder))


def without_clock(found: list[dict[str, Any]]) -> list[Record]:
    """The same of lines."""
    return [(r["step"], r["arm"], r["name"], r["value"]) for r in found if not r["name"].startswith("time/")]
