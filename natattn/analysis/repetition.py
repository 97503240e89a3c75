"""Whether a run that was trained again came out the same: its numbers, its weights, and what differs between the two.

Floating-point sums depend on their order: another number of threads, processor or version rounds otherwise, and
training lets such a difference grow. It is told from another computation by its size: at step s a loss may differ by
``LOSS_TOLERANCE`` × (1 + s), relatively, but by no more than ``CAP``; any other metric by ``SLACK`` times as much, but
by no more than ``OTHERS_CAP``.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from natattn.storage.atomic import write_json
from natattn.tracking.metrics_file import FILE_NAME, read_metrics
from natattn.training.environment import EARLIER, read_environment
from natattn.training.run_folder import flatten, read_config, read_run

REPEAT = "repeat.json"
# Relative, by the coarsest arithmetic that a run computes in. Between one thread and two on a CPU at most half of it
# was measured for fp32 and bf16, in 80 steps of a small model with three optimizers.
LOSS_TOLERANCE = {"fp64": 1e-12, "fp32": 2e-6, "bf16": 3e-4}
CAP = {"fp64": 1e-6, "fp32": 1e-3, "bf16": 1e-2}
# Of what is not a loss: maxima, condition numbers and energies that nearly cancel are less smooth than losses are.
SLACK = 100
OTHERS_CAP = {"fp64": 3e-5, "fp32": 0.03, "bf16": 0.3}

Verdict = Literal["bits", "rounding", "different"]
Key = tuple[int, str | None, str]  # step, arm, name


@dataclass(frozen=True)
class Difference:
    """One metric of which the two runs have different values.

    Attributes:
        relative: to the larger of the two values, or to the median of the series where both are smaller.
        share: of what rounding may come to; above 1 it is no rounding.
    """

    step: int
    arm: str | None
    name: str
    then: float
    now: float
    relative: float
    share: float

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"arm {self.arm}, step {self.step}, {self.name}"


@dataclass(frozen=True)
class Change:
    """Something known of both runs that is not the same."""

    what: str
    then: Any
    now: Any


@dataclass(frozen=True)
class Repetition:
    """A run, ``of``, and one that repeats it, in ``folder``.

    Attributes:
        compared: how many metrics both have.
        equal: how many of them to the bit.
        left_out: records of evaluations that a run made because it was stopped, and the other had no reason to make.
        missing: (step, arm, name) of what only one of them has, beside those.
        largest, first, worst: the largest relative difference, the earliest, and that furthest beyond rounding.
        weights: {arm: relative distance of the trained weights}; without those that are not kept.
    """

    of: str
    folder: str
    verdict: Verdict
    compared: int
    equal: int
    left_out: int
    missing: tuple[Key, ...]
    largest: Difference | None
    first: Difference | None
    worst: Difference | None
    weights: Mapping[str, float]
    changes: tuple[Change, ...]
    not_recorded: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """In its bits, or within rounding."""
        return self.verdict != "different"


def compare_runs(of: Path, folder: Path) -> Repetition:
    """Compare a run with its repetition in ``folder``, and save what was found there as repeat.json.

    Raises: UserError where a file of either cannot be read.
    """
    configs = read_config(of), read_config(folder)
    then, now = _values(of), _values(folder)
    left_out = _of_stops([*then, *now], configs[1]["train"])
    differences = _differences(then, now, _arithmetic(configs[1]), left_out)
    missing = tuple(sorted((then.keys() ^ now.keys()) - left_out, key=str))
    shared = (then.keys() & now.keys()) - left_out
    weights = _weight_distances(of, folder)
    changes, not_recorded = _changes(of, folder)
    worst = max(differences, key=lambda each: each.share, default=None)
    verdict: Verdict = "bits"
    if missing or not shared or (worst is not None and worst.share > 1) or any(map(math.isinf, weights.values())):
        verdict = "different"
    elif differences or any(weights.values()):
        verdict = "rounding"
    repetition = Repetition(
        of=str(of),
        folder=str(folder),
        verdict=verdict,
        compared=len(shared),
        equal=len(shared) - len(differences),
        left_out=len(left_out),
        missing=missing,
        largest=max(differences, key=lambda each: each.relative, default=None),
        first=min(differences, key=lambda each: (each.step, -each.relative), default=None),
        worst=worst,
        weights=weights,
        changes=changes,
        not_recorded=not_recorded,
    )
    write_json(folder / REPEAT, _plain(asdict(repetition) | {"agrees": repetition.agrees}))
    return repetition


def _values(folder: Path) -> dict[Key, float]:
    """The metrics of a run but its clock; of a step that was logged twice the last."""
    metrics = read_metrics(folder / FILE_NAME)
    columns = zip(metrics.step, metrics.arm, metrics.name, metrics.value, strict=True)
    return {(int(step), arm, name): float(value) for step, arm, name, value in columns if not name.startswith("time/")}


def _of_stops(keys: Iterable[Key], train: dict[str, Any]) -> set[Key]:
    """What belongs to evaluations at steps where a run was stopped, by its time limit or before it was made longer.

    How far patterns moved since the evaluation before has another meaning at the next one.
    """
    every, last = train["evaluate_every"], train["steps"]
    stopped = {key for key in keys if _is_of_evaluation(key) and key[0] % every and key[0] != last}
    stopped |= {key for key in keys if key[2].startswith("test/") and key[0] != last}
    following = {min(last, (step // every + 1) * every) for step in {key[0] for key in stopped} if step % every}
    return stopped | {key for key in keys if key[0] in following and key[2].endswith("/pattern_divergence")}


def _is_of_evaluation(key: Key) -> bool:
    return not key[2].startswith("train/") and key[2] != "diverged"


def _arithmetic(config: dict[str, Any]) -> str:
    """The coarsest that a run computes in: Newton–Schulz iterates in bfloat16 whatever the precision is."""
    values = {str(value) for value in flatten(config).values()}
    return "bf16" if "bfloat16" in values else str(config["precision"]["kind"])


def _differences(
    then: Mapping[Key, float], now: Mapping[Key, float], arithmetic: str, left_out: set[Key]
) -> list[Difference]:
    series: dict[tuple[str | None, str], list[float]] = defaultdict(list)
    for (_, arm, name), value in then.items():
        if math.isfinite(value):
            series[arm, name].append(abs(value))
    usual = {place: median(values) for place, values in series.items()}
    found = []
    for key in (then.keys() & now.keys()) - left_out:
        (step, arm, name), a, b = key, then[key], now[key]
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        relative = math.inf
        if math.isfinite(a) and math.isfinite(b):
            relative = abs(a - b) / max(abs(a), abs(b), usual[arm, name])
        allowed = min(CAP[arithmetic], LOSS_TOLERANCE[arithmetic] * (1 + step))
        if not name.endswith("/loss"):
            allowed = min(OTHERS_CAP[arithmetic], SLACK * LOSS_TOLERANCE[arithmetic] * (1 + step))
        found.append(Difference(step, arm, name, a, b, relative, relative / allowed))
    return found


def _weight_distances(of: Path, folder: Path) -> dict[str, float]:
    """{arm: ‖now − then‖ / ‖then‖ over its weights} of those that both runs keep; infinite where shapes differ."""
    from safetensors.torch import load_file

    distances = {}
    for path in sorted(folder.glob("arms/*/model/model.safetensors")):
        before = of / path.relative_to(folder)
        if not before.is_file():
            continue
        now, then = load_file(path), load_file(before)
        if {name: tensor.shape for name, tensor in now.items()} != {name: t.shape for name, t in then.items()}:
            distances[path.parents[1].name] = math.inf
            continue
        moved = sum(float((now[name].double() - then[name].double()).square().sum()) for name in now)
        size = sum(float(tensor.double().square().sum()) for tensor in then.values())
        distances[path.parents[1].name] = math.sqrt(moved / size) if size else math.sqrt(moved)
    return distances


def _changes(of: Path, folder: Path) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """What differs between the two environments and run.json; and what was not recorded of the first."""
    then, now = _known(of), _known(folder)
    changes = [Change(what, then[what], now[what]) for what in now if what in then and then[what] != now[what]]
    environment = read_environment(of)
    if "variables" in environment:
        one_sided = {name for name in then.keys() ^ now.keys() if name.startswith("variables.")}
        changes += [Change(name, then.get(name), now.get(name)) for name in sorted(one_sided)]
    sittings = len(environment.get(EARLIER, []))
    if sittings:
        changes.append(Change("sittings in other environments", sittings, 0))
    unknown = tuple(what for what in now if what not in then and not what.startswith("variables."))
    return tuple(changes), unknown


def _known(folder: Path) -> dict[str, Any]:
    """What is recorded of a run's environment, and of its start."""
    environment, facts = read_environment(folder), read_run(folder)
    known = flatten({key: value for key, value in environment.items() if key != EARLIER and value != {}})
    known["ranks"], known["seeds trained together"] = facts.get("ranks", 1), facts.get("replicas", 1)
    for key in ("initial_weights_hash", "config_hash"):
        if key in facts:
            known[key] = facts[key]
    known["data.fingerprint"] = facts.get("data", {}).get("fingerprint")
    return known


def _plain(value: Any) -> Any:
    """JSON content: strict JSON has no word for nan and infinity, which become text as in the metrics file."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
