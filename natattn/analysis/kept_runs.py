"""Published runs in two files: ``runs.jsonl`` (one run a line) and ``metrics.parquet`` (the metrics of all runs).

A packed run is addressed like a run folder, by a path inside the record: ``docs/results/runs.jsonl/60f105439d65694f``.
Its name is the first 16 digits of its configuration hash.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from natattn.errors import UserError
from natattn.storage.atomic import replacing
from natattn.storage.documents import MOST_JSON, open_regular, parsed_json, read_json, read_object, read_text
from natattn.tracking.metrics_file import FILE_NAME, Metrics, read_metrics
from natattn.training.environment import ENVIRONMENT
from natattn.training.run_folder import RUN, flatten, read_config

RECORD, METRICS = "runs.jsonl", "metrics.parquet"
NAME_LENGTH = 16
# Beginnings of names, or patterns: what tables and figures read. Curves of every role and layer would be most bytes.
KEPT_METRICS = ("validation/", "test/", "train/loss", "time/", "attention/layer_*/pattern_divergence")
_COLUMNS = ("step", "arm", "name", "value", "seconds")


@dataclass(frozen=True)
class KeptRun:
    """One line of the record.

    Attributes:
        name: of the run inside the record.
        config: resolved configuration (``config.yaml`` of the run folder).
        environment: versions, device and commit (``environment.json``).
        run: the run record (``run.json``).
    """

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    run: dict[str, Any]


def kept_runs(record: Path) -> list[Path]:
    """Return the paths of all runs in a record. Raises: UserError if it cannot be read."""
    return [record / name for name in _runs(record, _version(record))]


def kept_run(folder: Path) -> KeptRun | None:
    """Return the packed run that a path names; None for any other path. Raises: UserError for an unreadable record."""
    record = folder.parent
    return _runs(record, _version(record)).get(folder.name) if record.name == RECORD and record.is_file() else None


def kept_metrics(folder: Path) -> Metrics:
    """Return the metrics of a packed run. Raises: UserError if ``metrics.parquet`` cannot be read."""
    path = folder.parent.with_name(METRICS)
    return _metrics(path, _version(path)).get(folder.name) or Metrics(*(np.array([]) for _ in _COLUMNS))


def keep_runs(folders: Iterable[Path], target: Path, names: Sequence[str] = KEPT_METRICS) -> None:
    """Pack finished runs into the record in ``target``; a run that is packed already is replaced.

    Metrics are kept at evaluation steps, and only those that ``names`` (beginnings or patterns) select.

    Raises: UserError for a run whose configuration names an absolute path.
    """
    import pyarrow
    from pyarrow import parquet

    if not (folders := list(folders)):
        return
    record, path = target / RECORD, target / METRICS
    runs = dict(_runs(record, _version(record))) if record.exists() else {}
    metrics = dict(_metrics(path, _version(path))) if path.exists() else {}
    for folder in folders:
        config = read_config(folder)
        for key, value in flatten(config).items():
            if isinstance(value, str) and Path(value).is_absolute():
                raise UserError(f"{folder}: {key}={value}: names a folder of this machine. Train with a relative path.")
        facts = read_json(folder / RUN)
        name = facts["config_hash"][:NAME_LENGTH]
        runs[name] = KeptRun(name, config, read_object(folder / ENVIRONMENT), facts)
        metrics[name] = _selected(read_metrics(folder / FILE_NAME), names)
    target.mkdir(parents=True, exist_ok=True)
    with replacing(record) as temporary:
        lines = (json.dumps(asdict(runs[name]), ensure_ascii=False, separators=(",", ":")) for name in sorted(runs))
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    columns: dict[str, list[Any]] = {
        column: [value for name in sorted(metrics) for value in getattr(metrics[name], column).tolist()]
        for column in _COLUMNS
    }
    columns = {"run": [name for name in sorted(metrics) for _ in metrics[name].step]} | columns
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary, compression="zstd", compression_level=19)


def _selected(metrics: Metrics, names: Sequence[str]) -> Metrics:
    evaluated = set(metrics.step[metrics.name == "validation/loss"].tolist())
    wanted = {
        name: any(fnmatchcase(name, pattern if "*" in pattern else f"{pattern}*") for pattern in names)
        for name in metrics.names()
    }
    rows = zip(metrics.step.tolist(), metrics.name.tolist(), strict=True)
    chosen = np.array([name == "diverged" or (step in evaluated and wanted[name]) for step, name in rows], dtype=bool)
    return Metrics(*(getattr(metrics, column)[chosen] for column in _COLUMNS))


def _version(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4)
def _runs(record: Path, version: tuple[int, int]) -> dict[str, KeptRun]:
    try:
        lines = read_text(record, MOST_JSON).splitlines()
        return {(run := KeptRun(**parsed_json(line))).name: run for line in lines}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{record}: not a record of runs: {error}") from error


@lru_cache(maxsize=4)
def _metrics(path: Path, version: tuple[int, int]) -> dict[str, Metrics]:
    import pyarrow
    from pyarrow import parquet

    try:
        with open_regular(path) as file:
            table = parquet.read_table(file)
            runs, *columns = (table[name].to_numpy(zero_copy_only=False) for name in ("run", *_COLUMNS))
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not the metrics of a record of runs: {error}") from error
    starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1])[: len(runs)])
    parts = zip(*(np.split(column, starts[1:]) for column in columns), strict=True)
    return {str(runs[start]): Metrics(*part) for start, part in zip(starts, parts, strict=True)}
