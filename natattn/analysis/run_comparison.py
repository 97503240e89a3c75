"""Comparison of two finished runs: identical to the bit, equal within rounding, or different, and what differs.

Floating-point sums depend on their order, so another number of threads, processor or library version rounds
differently, and training amplifies the difference. Rounding is separated from a real difference by its size: at step s
a loss may differ by ``LOSS_TOLERANCE`` × (1 + s), relatively, up to ``CAP``; any other metric by ``SLACK`` times as
much, up to ``OTHERS_CAP``.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

from natattn.errors import UserError
from natattn.storage.redaction import one_line
from natattn.tracking.metrics_file import FILE_NAME, read_metrics
from natattn.training.environment import EARLIER, read_environment
from natattn.training.run_folder import covers, flatten, read_config, read_run
from natattn.training.settings import CHANGEABLE

# Relative tolerance per step, by the coarsest arithmetic of a run. At most half of it was measured between one and two
# CPU threads for fp32 and bf16, in 80 steps of a small model with three optimizers.
LOSS_TOLERANCE = {"fp64": 1e-12, "fp32": 2e-6, "bf16": 3e-4}
CAP = {"fp64": 1e-6, "fp32": 1e-3, "bf16": 1e-2}
# Maxima, condition numbers and energies that nearly cancel are less smooth than losses.
SLACK = 100
OTHERS_CAP = {"fp64": 3e-5, "fp32": 0.03, "bf16": 0.3}
_WIDTH_WITHOUT_TERMINAL = 160

Verdict = Literal["identical", "rounding", "different"]
Key = tuple[int, str | None, str]  # step, arm, name


@dataclass(frozen=True)
class Difference:
    """A metric with different values in the two runs.

    Attributes:
        relative: difference relative to the larger of the two values, or to the median of the series if that is larger.
        share: fraction of the difference that rounding may cause; above 1 it is not rounding.
    """

    step: int
    arm: str | None
    name: str
    first: float
    second: float
    relative: float
    share: float

    def __str__(self) -> str:
        return f"arm {self.arm}, step {self.step}, {self.name}"


@dataclass(frozen=True)
class Change:
    """A setting or a part of the environment that differs between the runs."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class RunComparison:
    """Comparison of two runs.

    Attributes:
        compared: number of metrics that both runs have.
        left_out: number of records that only exist because a run was stopped in between.
        missing: (step, arm, name) of other metrics that only one run has.
        differences: metrics that are not identical, in order of step.
        weights: {arm: ‖second − first‖ / ‖first‖ of the trained weights}, of the arms that both runs have saved.
        not_recorded: facts that only the second run has recorded.
    """

    folders: tuple[str, str]
    verdict: Verdict
    compared: int
    left_out: int
    missing: tuple[Key, ...]
    differences: tuple[Difference, ...]
    weights: Mapping[str, float]
    changes: tuple[Change, ...]
    not_recorded: tuple[str, ...]

    @property
    def largest(self) -> Difference | None:
        """The largest relative difference."""
        return max(self.differences, key=lambda difference: difference.relative, default=None)

    @property
    def worst(self) -> Difference | None:
        """The difference that exceeds rounding the most."""
        return max(self.differences, key=lambda difference: difference.share, default=None)


def compare_runs(first: Path, second: Path) -> RunComparison:
    """Compare the metrics, weights, settings and environments of two runs.

    Raises: UserError for a file that cannot be read.
    """
    configs = read_config(first), read_config(second)
    metrics = _values(first), _values(second)
    settings = flatten(configs[1])
    # Newton–Schulz iterates in bfloat16 under any precision.
    arithmetic = "bf16" if "bfloat16" in map(str, settings.values()) else settings.get("precision.kind")
    every, last = settings.get("train.evaluate_every"), settings.get("train.steps")
    if arithmetic not in LOSS_TOLERANCE or not isinstance(every, int) or not isinstance(last, int):
        raise UserError(f"{second}: its config.yaml lacks precision, train.evaluate_every or train.steps")
    left_out = _left_by_stops([*metrics[0], *metrics[1]], every, last)
    shared = (metrics[0].keys() & metrics[1].keys()) - left_out
    missing = tuple(sorted((metrics[0].keys() ^ metrics[1].keys()) - left_out, key=str))
    differences = _differences(*metrics, shared, arithmetic)
    weights = _weight_distances(first, second)
    changes, not_recorded = _changes(first, second)
    verdict: Verdict = "identical"
    beyond_rounding = any(difference.share > 1 for difference in differences)
    if missing or not shared or beyond_rounding or any(map(math.isinf, weights.values())):
        verdict = "different"
    elif differences or any(weights.values()):
        verdict = "rounding"
    return RunComparison(
        folders=(str(first), str(second)),
        verdict=verdict,
        compared=len(shared),
        left_out=len(left_out),
        missing=missing,
        differences=tuple(sorted(differences, key=lambda each: (each.step, -each.relative))),
        weights=weights,
        changes=(*_changed_settings(*configs), *changes),
        not_recorded=not_recorded,
    )


def _values(folder: Path) -> dict[Key, float]:
    """Return the metrics of a run without its clock; the last value if a step was logged twice."""
    metrics = read_metrics(folder / FILE_NAME)
    columns = zip(metrics.step, metrics.arm, metrics.name, metrics.value, strict=True)
    return {(int(step), arm, name): float(value) for step, arm, name, value in columns if not name.startswith("time/")}


def _left_by_stops(keys: Iterable[Key], every: int, last: int) -> set[Key]:
    """Return records of evaluations at a stop: at the time limit, or at the end before the run was extended.

    The pattern divergence of the next evaluation is relative to that stop, so it is included.
    """
    keys = list(keys)
    evaluations = [key for key in keys if not key[2].startswith("train/") and key[2] != "diverged"]
    stopped = {key for key in evaluations if key[0] % every and key[0] != last}
    stopped |= {key for key in keys if key[2].startswith("test/") and key[0] != last}
    following = {min(last, (step // every + 1) * every) for step in {key[0] for key in stopped} if step % every}
    return stopped | {key for key in keys if key[0] in following and key[2].endswith("/pattern_divergence")}


def _differences(
    first: Mapping[Key, float], second: Mapping[Key, float], shared: set[Key], arithmetic: str
) -> list[Difference]:
    series: dict[tuple[str | None, str], list[float]] = defaultdict(list)
    for (_, arm, name), value in first.items():
        if math.isfinite(value):
            series[arm, name].append(abs(value))
    typical = {key: median(values) for key, values in series.items()}
    differences = []
    for key in shared:
        (step, arm, name), a, b = key, first[key], second[key]
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        relative = math.inf
        if math.isfinite(a) and math.isfinite(b):
            relative = abs(a - b) / max(abs(a), abs(b), typical[arm, name])
        allowed = min(CAP[arithmetic], LOSS_TOLERANCE[arithmetic] * (1 + step))
        if not name.endswith("/loss"):
            allowed = min(OTHERS_CAP[arithmetic], SLACK * LOSS_TOLERANCE[arithmetic] * (1 + step))
        differences.append(Difference(step, arm, name, a, b, relative, relative / allowed))
    return differences


def _weight_distances(first: Path, second: Path) -> dict[str, float]:
    """Return {arm: relative distance of the weights}; infinite for different shapes."""
    from safetensors.torch import load_file

    distances = {}
    for path in sorted(second.glob("arms/*/model/model.safetensors")):
        other = first / path.relative_to(second)
        if not (path.is_file() and other.is_file()):
            continue
        try:
            after, before = load_file(path), load_file(other)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}, {other}: cannot be compared: {error}") from error
        if {name: tensor.shape for name, tensor in after.items()} != {name: t.shape for name, t in before.items()}:
            distances[path.parents[1].name] = math.inf
            continue
        moved = sum(float((after[name].double() - before[name].double()).square().sum()) for name in after)
        size = sum(float(tensor.double().square().sum()) for tensor in before.values())
        distances[path.parents[1].name] = math.sqrt(moved / size) if size else math.sqrt(moved)
    return distances


def _changed_settings(first: dict[str, Any], second: dict[str, Any]) -> list[Change]:
    """Return settings with different values, except those that a run may change when it is resumed."""
    values = flatten(first), flatten(second)
    keys = sorted(key for key in values[0].keys() | values[1].keys() if not covers(CHANGEABLE, key))
    return [
        Change(key, values[0].get(key), values[1].get(key)) for key in keys if values[0].get(key) != values[1].get(key)
    ]


def _changes(first: Path, second: Path) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Return what differs in environment.json and run.json, and what the first run has not recorded."""
    before, after = _recorded(first), _recorded(second)
    changes = [
        Change(name, before[name], after[name]) for name in after if name in before and before[name] != after[name]
    ]
    environment = read_environment(first)
    if "variables" in environment:
        one_sided = {name for name in before.keys() ^ after.keys() if name.startswith("variables.")}
        changes += [Change(name, before.get(name), after.get(name)) for name in sorted(one_sided)]
    earlier = [read_environment(folder).get(EARLIER) or [] for folder in (first, second)]
    if any(earlier):
        counts = (len(each) if isinstance(each, list) else 0 for each in earlier)
        changes.append(Change("earlier environments of a resumed run", *counts))
    return tuple(changes), tuple(n for n in after if n not in before and not n.startswith("variables."))


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what is recorded of a run's environment and of its start."""
    environment, record = read_environment(folder), read_run(folder)
    recorded = flatten({key: value for key, value in environment.items() if key != EARLIER and value != {}})
    recorded["ranks"], recorded["stacked seeds"] = record.get("ranks", 1), record.get("replicas", 1)
    if "initial_weights_hash" in record:
        recorded["initial_weights_hash"] = record["initial_weights_hash"]
    data = record.get("data")
    recorded["data.fingerprint"] = data.get("fingerprint") if isinstance(data, dict) else None
    return recorded


def print_comparison(comparison: RunComparison, *, stream: TextIO) -> None:
    """Print the verdict in one line; if the runs are not identical, also the details and a table of what differs."""
    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    # Markup is off: values come from files and may contain brackets.
    console = Console(file=stream, highlight=False, markup=False, emoji=False, width=width)
    style = "bold red" if comparison.verdict == "different" else "bold green"
    console.print(Text.assemble((one_line(_verdict_line(comparison)), style)), soft_wrap=True)
    if comparison.left_out:
        console.print(f"  not compared: {comparison.left_out} metrics of evaluations at which a run was stopped")
    if comparison.verdict == "identical":
        return
    for line in _details(comparison):
        console.print(Text(one_line(f"  {line}")), soft_wrap=True)
    if comparison.changes:
        table = Table("setting or environment", "first", "second", title="what differs", title_justify="left")
        for change in comparison.changes:
            cells = (change.name, _short(change.first), _short(change.second))
            table.add_row(*(Text(one_line(cell)) for cell in cells))
        console.print(table)


def _verdict_line(comparison: RunComparison) -> str:
    start = f"{comparison.folders[0]} and {comparison.folders[1]}: "
    if comparison.verdict == "identical":
        weights = f", and the weights of {len(comparison.weights)} arms" if comparison.weights else ""
        return f"{start}identical to the bit ({comparison.compared} metrics{weights})"
    largest = comparison.largest
    difference = f"; the largest relative difference is {largest.relative:.2g} ({largest})" if largest else ""
    counts = f"{len(comparison.differences)} of {comparison.compared} metrics differ"
    verdict = "equal within rounding" if comparison.verdict == "rounding" else "DIFFERENT"
    return f"{start}{verdict}: {counts}{difference}"


def _details(comparison: RunComparison) -> list[str]:
    lines = []
    if comparison.differences:
        earliest = comparison.differences[0]
        lines.append(f"first difference: {earliest}: {earliest.first:.9g} → {earliest.second:.9g}")
    if (worst := comparison.worst) is not None and worst.share > 1:
        excess = f"{worst.share:.3g} times what rounding may cause"
        lines.append(f"largest excess, {excess}: {worst}: {worst.first:.9g} → {worst.second:.9g}")
    if comparison.missing:
        step, arm, name = comparison.missing[0]
        lines.append(f"{len(comparison.missing)} metrics in only one run, such as arm {arm}, step {step}, {name}")
    for arm, distance in comparison.weights.items():
        lines.append(f"weights of arm {arm}: relative distance {distance:.2g}")
    if comparison.not_recorded:
        lines.append(f"not recorded for the first run: {', '.join(comparison.not_recorded)}")
    if not comparison.changes:
        lines.append("settings and environment are the same; train.deterministic=true gives identical bits")
    return lines


def _short(value: Any) -> str:
    """Return a table cell; hashes are cut."""
    text = "(unset)" if value is None else str(value)
    body, plus, rest = text.partition("+changes")
    is_hash = len(body) >= 40 and all(letter in "0123456789abcdef" for letter in body)
    return f"{body[:12]}…{plus}{rest}" if is_hash else text
