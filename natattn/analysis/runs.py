"""Finding runs, in folders and in packed records, and reading the numbers that every table is made of."""

import glob
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from natattn.analysis import facts as read
from natattn.analysis.data_facts import DataFacts, data_of, unit_of
from natattn.analysis.kept_runs import RECORD, kept_metrics, kept_run, kept_runs
from natattn.errors import UserError
from natattn.statistics.paired import time_to_target
from natattn.storage.documents import read_json
from natattn.tracking.metrics_file import FILE_NAME as METRICS_FILE
from natattn.tracking.metrics_file import Metrics, read_metrics
from natattn.training.run_folder import CONFIG, RUN, read_config


@dataclass(frozen=True)
class ArmSummary:
    """Numbers of one arm; None means unknown. Losses are in nats per unit of the run (token, image or pair).

    Attributes:
        steps_to_target, seconds_to_target: time until the validation loss is at most the reference's final loss; None
            if it never is, or if the run has no reference. A diverged arm reaches no target and has no final loss.
        step_seconds: median over the intervals between evaluations.
        units_per_second: tokens, images or pairs.
        step_time_ratio: step time over that of the reference.
        metrics: last value of each further metric of the task, such as ``validation/accuracy``.
    """

    name: str
    optimizer: str
    parameters: int | None
    status: str
    cause: str | None
    diverged_at: int | None
    last_step: int | None
    final_loss: float | None
    best_loss: float | None
    best_step: int | None
    test_loss: float | None
    steps_to_target: float | None
    seconds_to_target: float | None
    step_seconds: float | None
    units_per_second: float | None
    step_time_ratio: float | None
    peak_memory_bytes: float | None
    leaky: bool
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """One run. If it cannot be read, ``problem`` states why and the other fields are empty.

    Attributes:
        folder: run folder, or address inside a record (see ``natattn.analysis.kept_runs``).
        unit: what a loss is the mean over: token, image or pair.
        arms: the reference first.
    """

    folder: Path
    problem: str | None = None
    status: str = "broken"
    label: str = ""
    reference: str | None = None
    candidate: str | None = None
    seed: int | None = None
    unit: str = "token"
    planned_steps: int | None = None
    device: str = ""
    identical: bool = False
    target: float | None = None
    process_peak_memory_bytes: float | None = None
    data: DataFacts | None = None
    arms: tuple[ArmSummary, ...] = ()
    config: dict[str, Any] | None = None
    config_hash: str = ""
    initial_weights_hash: str | None = None

    def arm(self, name: str | None) -> ArmSummary | None:
        """Return the arm of that name; None if the run does not have it."""
        return next((arm for arm in self.arms if arm.name == name), None)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the runs at and below the paths, in natural order. Patterns (``outputs/*``) are expanded.

    A path may also be a record of packed runs (``docs/results/runs.jsonl``) or one run in it.

    Raises: UserError for a path without runs.
    """
    runs: dict[Path, Path] = {}
    for path in map(str, paths):
        is_pattern = glob.has_magic(path) and not os.path.exists(path)
        starts = map(Path, glob.glob(path)) if is_pattern else [Path(path)]
        below = [run for start in starts for run in _runs_below(start)]
        if not below:
            raise UserError(f"no run in {path}: a run folder holds {RUN}, a sweep folder holds run folders")
        runs.update((run.resolve(), run) for run in below)
    return sorted(runs.values(), key=_natural_order)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the run record (``run.json``). Raises: UserError if it is missing or not a JSON object."""
    if (kept := kept_run(folder)) is not None:
        return kept.run
    path = folder / RUN
    try:
        facts = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object")
    return facts


def read_run_config(folder: Path) -> dict[str, Any]:
    """Return the resolved configuration of a run. Raises: UserError if it is missing or malformed."""
    kept = kept_run(folder)
    return read_config(folder) if kept is None else kept.config


def read_run_metrics(folder: Path) -> Metrics:
    """Return the metrics of a run. Raises: UserError if they are missing or malformed."""
    return read_metrics(folder / METRICS_FILE) if kept_run(folder) is None else kept_metrics(folder)


def summarise_run(folder: Path) -> RunSummary:
    """Summarise one run. If it is broken, ``problem`` of the summary states why; UserError is never raised."""
    folder = Path(folder)
    try:
        return _summarise(folder, read_facts(folder), read_run_metrics(folder))
    except UserError as error:
        return RunSummary(folder, problem=str(error))
    except KeyError as error:
        return RunSummary(folder, problem=f"{folder / RUN}: no key {error}")
    except (AttributeError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        return RunSummary(folder, problem=f"{folder / RUN}: {error}")


def _runs_below(start: Path) -> Iterator[Path]:
    if start.name == RECORD and start.is_file():
        yield from kept_runs(start)
    elif kept_run(start) is not None:
        yield start
    for folder, subfolders, files in os.walk(start):
        if {RUN, METRICS_FILE, CONFIG} & set(files):
            subfolders.clear()  # runs do not nest
            yield Path(folder)
        else:
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            yield from kept_runs(Path(folder) / RECORD) if RECORD in files else ()


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2_natural before 10_natural."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _summarise(folder: Path, facts: dict[str, Any], metrics: Metrics) -> RunSummary:
    reference = None if facts["reference"] is None else read.name(facts["reference"])
    names = sorted(map(read.name, read.mapping(facts["arms"])), key=lambda name: name != reference)
    target = _final_loss(metrics, reference) if reference is not None else None
    reference_step_seconds = _step_seconds(metrics, reference) if reference is not None else None
    arms = tuple(_arm(name, facts, metrics, target, reference_step_seconds) for name in names)
    return RunSummary(
        folder=folder,
        status=read.text(facts["status"]),
        label=read.text(facts.get("label", "")),
        reference=reference,
        candidate=read.name(facts["candidate"]),
        seed=read.whole(facts.get("seed")),
        unit=unit_of(facts),
        planned_steps=read.whole(facts.get("steps")),
        device=read.text(facts.get("device", "")),
        identical=facts.get("identical") is True,
        target=target,
        process_peak_memory_bytes=_largest(metrics, None, "time/peak_memory_bytes"),
        data=data_of(facts),
        arms=arms,
        config=_config(folder),
        config_hash=read.text(facts.get("config_hash", "")),
        initial_weights_hash=read.optional_text(facts.get("initial_weights_hash")),
    )


def _arm(
    name: str, facts: dict[str, Any], metrics: Metrics, target: float | None, reference_step_seconds: float | None
) -> ArmSummary:
    arm = read.mapping(facts["arms"][name])
    steps, losses, _ = metrics.select(arm=name, name="validation/loss")
    diverged_at = _last(metrics, name, "diverged")
    finite = np.flatnonzero(np.isfinite(losses))
    best = finite[np.argmin(losses[finite])] if finite.size else None
    step_seconds = _step_seconds(metrics, name)
    reached = None
    if target is not None and diverged_at is None:
        reached = time_to_target(steps, losses, target)
    return ArmSummary(
        name=name,
        optimizer=read.text(arm.get("optim", "")),
        parameters=read.whole(arm.get("parameters")),
        status=read.text(arm.get("status", facts["status"])),
        cause=read.optional_text(arm.get("cause")),
        diverged_at=None if diverged_at is None else int(diverged_at),
        last_step=int(steps[-1]) if steps.size else None,
        final_loss=_final_loss(metrics, name),
        best_loss=None if best is None else float(losses[best]),
        best_step=None if best is None else int(steps[best]),
        test_loss=_last(metrics, name, "test/loss"),
        steps_to_target=reached,
        seconds_to_target=None if reached is None else _at_step(metrics, name, "time/train_seconds", reached),
        step_seconds=step_seconds,
        units_per_second=_units_per_second(metrics, name, step_seconds, facts),
        step_time_ratio=step_seconds / reference_step_seconds if step_seconds and reference_step_seconds else None,
        peak_memory_bytes=_largest(metrics, name, "time/peak_memory_bytes"),
        leaky=name in facts.get("leaky", ()),
        metrics=_task_metrics(metrics, name) if diverged_at is None else {},
    )


def _task_metrics(metrics: Metrics, arm: str) -> dict[str, float]:
    """Return the last value of every metric of a split except its loss."""
    names = {name for name in metrics.names() if name.startswith(("validation/", "test/"))}
    last = {name: _last(metrics, arm, name) for name in sorted(names - {"validation/loss", "test/loss"})}
    return {name: value for name, value in last.items() if value is not None}


def _final_loss(metrics: Metrics, arm: str) -> float | None:
    """Return the last validation loss; None for a diverged arm."""
    final = _last(metrics, arm, "validation/loss")
    if final is None or not math.isfinite(final) or _last(metrics, arm, "diverged") is not None:
        return None
    return final


def _last(metrics: Metrics, arm: str, name: str) -> float | None:
    _, values, _ = metrics.select(arm=arm, name=name)
    return float(values[-1]) if values.size else None


def _largest(metrics: Metrics, arm: str | None, name: str) -> float | None:
    _, values, _ = metrics.select(arm=arm, name=name)
    return float(values.max()) if values.size else None


def _at_step(metrics: Metrics, arm: str, name: str, step: float) -> float | None:
    steps, values, _ = metrics.select(arm=arm, name=name)
    here = np.flatnonzero(steps == step)
    return float(values[here[-1]]) if here.size else None


def _step_seconds(metrics: Metrics, arm: str) -> float | None:
    steps, train_seconds, _ = metrics.select(arm=arm, name="time/train_seconds")
    # A resumed run may log a step twice.
    taken = np.diff(steps) > 0
    return float(np.median(np.diff(train_seconds)[taken] / np.diff(steps)[taken])) if taken.any() else None


def _units_per_second(metrics: Metrics, arm: str, step_seconds: float | None, facts: dict[str, Any]) -> float | None:
    unit = unit_of(facts)
    units_per_step = read.whole(facts.get(f"{unit}s_per_step"))
    if units_per_step and step_seconds:
        return float(units_per_step / step_seconds)
    return _last(metrics, arm, f"time/{unit}s_per_second")  # too few evaluations for a median


def _config(folder: Path) -> dict[str, Any] | None:
    try:
        return read_run_config(folder)
    except UserError:
        return None  # a run is worth showing without its configuration
