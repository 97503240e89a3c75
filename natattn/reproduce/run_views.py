"""What a page carries of each run, so that any two can be compared without the run folders: small, and bounded."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natattn.analysis.quantities import task_metrics
from natattn.analysis.runs import ArmSummary, RunSummary, read_run_metrics, summarise_run
from natattn.report.html import run_address
from natattn.tracking.metrics_file import Metrics
from natattn.training.run_folder import ADDED_LATER, flatten

MOST_RUNS = 400  # on one page
MOST_POINTS = 100  # of a curve
MOST_LETTERS = 200  # of a value of the configuration
_SIGNIFICANT = 6  # digits of a loss in a curve


@dataclass(frozen=True)
class ArmView:
    """One arm of a run: final and best loss in nats (None where it has none), and its validation curve.

    `metrics` are shares that its task measures beside the loss, by what they are called.
    """

    name: str
    optimizer: str
    status: str
    reference: bool
    leaky: bool
    final: float | None
    best: float | None
    metrics: dict[str, float]
    steps: list[int]
    losses: list[float]


@dataclass(frozen=True)
class RunView:
    """One run.

    Attributes:
        label: the folder's name and the arms.
        address: of the folder, relative to the page.
        status: how it ended, or why it cannot be read.
        data: name and fingerprint; losses compare where they are equal.
        unit: of which a loss is the mean: token, image or pair.
        per_byte: tokens per byte of the validation text; None of other data.
        config: {dotted key: value}, values as text.
        arms: the reference first.
    """

    label: str
    address: str
    status: str
    seed: int | None
    data: str
    unit: str
    per_byte: float | None
    config: dict[str, str]
    arms: tuple[ArmView, ...]


def read_views(folders: Sequence[Path], base: Path, known: Sequence[RunSummary] = ()) -> list[RunView]:
    """Reads the runs; one that is broken or not there is named, with what is wrong in its status.

    Args:
        base: the folder that the page lies in.
        known: runs of which only the curves are still to be read.
    """
    summaries = {run.folder.absolute(): run for run in known}
    names = Counter(folder.name for folder in folders)
    views = []
    for folder in folders:
        name = folder.name if names[folder.name] == 1 else f"{folder.parent.name}/{folder.name}"
        summary = summaries.get(folder.absolute()) or summarise_run(folder)
        views.append(_view(summary, name, run_address(folder, base)))
    return views


def embedded(views: Sequence[RunView]) -> str:
    """The runs as JSON that may stand in a script element: no character of it means anything to HTML.

    Keys of the configuration that are the same in all runs are left out: no comparison shows them.
    """
    keys = _differing_keys(views)
    runs = [asdict(view) | {"config": {key: view.config[key] for key in keys if key in view.config}} for view in views]
    text = json.dumps(runs, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _differing_keys(views: Sequence[RunView]) -> list[str]:
    known = [view.config for view in views if view.config]  # a run that cannot be read differs in nothing
    keys = sorted({key for config in known for key in config})
    return [key for key in keys if len({config.get(key) for config in known}) > 1]


def _view(run: RunSummary, name: str, address: str) -> RunView:
    if run.problem is not None:
        problem = run.problem.replace(f"{run.folder}/", "")  # the address says where it is
        return RunView(f"{name} · broken", address, f"broken: {problem}", None, "", run.unit, None, {}, ())
    metrics = read_run_metrics(run.folder)
    arms = " vs ".join(f"{arm.name} ({arm.optimizer})" for arm in run.arms)
    seed = "" if run.seed is None else f" · seed {run.seed}"
    return RunView(
        label=f"{name} · {arms}{seed}",
        address=address,
        status=run.status.replace("_", " "),
        seed=run.seed,
        data=f"{run.data.name} ({run.data.fingerprint[:12]})" if run.data else "",
        unit=run.unit,
        per_byte=run.data.text.tokens_per_byte if run.data and run.data.text else None,
        config=_config(run.config),
        arms=tuple(_arm(arm, metrics, is_reference=arm.name == run.reference) for arm in run.arms),
    )


def _arm(arm: ArmSummary, metrics: Metrics, *, is_reference: bool) -> ArmView:
    steps, losses = _curve(metrics, arm.name)
    status = arm.status.replace("_", " ") if arm.diverged_at is None else f"diverged at step {arm.diverged_at}"
    measured = {name: value for name, value in task_metrics(arm).items() if math.isfinite(value)}
    return ArmView(
        arm.name, arm.optimizer, status, is_reference, arm.leaky, arm.final_loss, arm.best_loss, measured, steps, losses
    )  # fmt: skip


def _curve(metrics: Metrics, arm: str) -> tuple[list[int], list[float]]:
    """The finite validation losses, thinned evenly with both ends kept; of a step that was logged twice the last."""
    steps, losses, _ = metrics.select(arm=arm, name="validation/loss")
    last = {int(step): float(loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)}
    points = sorted(last.items())
    if len(points) > MOST_POINTS:
        points = [points[place] for place in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]
    return [step for step, _ in points], [float(f"{loss:.{_SIGNIFICANT}g}") for _, loss in points]


def _config(config: dict[str, Any] | None) -> dict[str, str]:
    """Dotted keys and values as text; a key that is younger than the run has the value that the run had."""
    if not config:
        return {}
    flat = ADDED_LATER | {str(key): value for key, value in flatten(config).items()}
    return {key: _text(value) for key, value in flat.items()}


def _text(value: Any) -> str:
    """Short enough for a page; what is cut is told apart by its hash."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except TypeError:  # YAML knows keys that JSON does not
        text = str(value)
    if len(text) <= MOST_LETTERS:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{text[:MOST_LETTERS]}… ({len(text)} characters, sha256 {digest}…)"
