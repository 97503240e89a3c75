"""Run folders: finding them, and reading the numbers of one that every table is made of."""

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
from natattn.errors import UserError
from natattn.statistics.paired import time_to_target
from natattn.storage.documents import read_json
from natattn.tracking.metrics_file import FILE_NAME as METRICS_FILE
from natattn.tracking.metrics_file import Metrics, read_metrics
from natattn.training.run_folder import CONFIG, RUN, read_config


@dataclass(frozen=True)
class ArmSummary:
    """The numbers of one arm; None is "not known". Losses in nats per the run's unit.

    `metrics` are the task's others, as they were last measured, by their names: validation/accuracy, …

    `steps_to_target` and `seconds_to_target` are of the reference's final loss: None if it was not reached, or there
    is no target. A diverged arm has no final loss and has reached nothing.
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
    step_seconds: float | None  # median over the intervals between evaluations
    units_per_second: float | None  # tokens, images or pairs
    step_time_ratio: float | None  # to the reference
    peak_memory_bytes: float | None
    leaky: bool
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """One run. Where `problem` says why it cannot be read, the rest is empty."""

    folder: Path
    problem: str | None = None
    status: str = "broken"
    label: str = ""
    reference: str | None = None
    candidate: str | None = None
    seed: int | None = None
    unit: str = "token"  # what a loss is the mean over: token, image or pair
    planned_steps: int | None = None
    device: str = ""
    identical: bool = False
    target: float | None = None
    process_peak_memory_bytes: float | None = None
    data: DataFacts | None = None
    arms: tuple[ArmSummary, ...] = ()  # the reference first
    config: dict[str, Any] | None = None
    config_hash: str = ""
    initial_weights_hash: str | None = None

    def arm(self, name: str | None) -> ArmSummary | None:
        """The arm of that name, if the run has it."""
        return next((arm for arm in self.arms if arm.name == name), None)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among the paths and below them, in natural order; patterns (`outputs/*`) are expanded.

    Raises UserError where a path holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        runs = [run for start in _expand(str(path)) for run in _runs_below(start)]
        if not runs:
            raise UserError(f"no run in {path}: a run folder holds {RUN}, a sweep folder holds run folders")
        found.update((run.resolve(), run) for run in runs)
    return sorted(found.values(), key=_natural_order)


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of run.json. Raises UserError where it is missing or is no JSON object."""
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


def summarise_run(folder: Path) -> RunSummary:
    """Reads one run folder; one that is broken gives a summary whose `problem` says why. Never raises UserError."""
    folder = Path(folder)
    try:
        return _summarise(folder, read_facts(folder), read_metrics(folder / METRICS_FILE))
    except UserError as error:
        return RunSummary(folder, problem=str(error))
    except KeyError as error:
        return RunSummary(folder, problem=f"{folder / RUN}: no key {error}")
    except (AttributeError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        return RunSummary(folder, problem=f"{folder / RUN}: {error}")


def _expand(path: str) -> list[Path]:
    if os.path.exists(path) or not glob.has_magic(path):
        return [Path(path)]
    return [Path(match) for match in glob.glob(path)]


def _runs_below(start: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(start):
        if {RUN, METRICS_FILE, CONFIG} & set(files):
            subfolders.clear()  # runs do not nest
            yield Path(folder)
        else:
            subfolders[:] = [each for each in subfolders if not each.startswith(".")]


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2_natural before 10_natural."""
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
    """The last values of what is measured of a split beside its loss."""
    found = {name for name in metrics.names() if name.startswith(("validation/", "test/"))}
    last = {name: _last(metrics, arm, name) for name in sorted(found - {"validation/loss", "test/loss"})}
    return {name: value for name, value in last.items() if value is not None}


def _final_loss(metrics: Metrics, arm: str) -> float | None:
    """The last validation loss; a diverged arm has none."""
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
    # A resumed run may log a step twice: no interval.
    taken = np.diff(steps) > 0
    return float(np.median(np.diff(train_seconds)[taken] / np.diff(steps)[taken])) if taken.any() else None


def _units_per_second(metrics: Metrics, arm: str, step_seconds: float | None, facts: dict[str, Any]) -> float | None:
    unit = unit_of(facts)
    units_per_step = read.whole(facts.get(f"{unit}s_per_step"))
    if units_per_step and step_seconds:
        return float(units_per_step / step_seconds)
    return _last(metrics, arm, f"time/{unit}s_per_second")  # too few evaluations for a median


def _config(folder: Path) -> dict[str, Any] | None:
    """A run is worth showing without its configuration."""
    try:
        return read_config(folder)
    except UserError:
        return None
