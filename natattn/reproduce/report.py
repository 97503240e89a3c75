"""The HTML report of studies and of runs: claims with verdicts, tables, figures, and any two runs side by side."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natattn.analysis.quantities import task_metrics
from natattn.analysis.runs import ArmSummary, RunSummary, read_run_metrics, summarise_run
from natattn.errors import UserError
from natattn.report.page import render_page, run_address
from natattn.reproduce.claims import Claim
from natattn.reproduce.ledger import by_claim
from natattn.reproduce.results import StudyResult, overall
from natattn.storage.atomic import replacing
from natattn.tracking.metrics_file import Metrics
from natattn.training.run_folder import ADDED_LATER, flatten

MOST_RUNS = 400  # compared on one page
MOST_POINTS = 100  # of a curve
_MOST_LETTERS = 200  # of a value of the configuration
_SIGNIFICANT = 6  # digits of a loss in a curve


@dataclass(frozen=True)
class ArmView:
    """One arm of a compared run.

    Attributes:
        final, best: validation losses, nats; None if there is none.
        metrics: {title: share} of what its task measures next to the loss.
        steps, losses: its validation curve.
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
    """One compared run, as compare.js reads it: the page needs no run folder.

    Attributes:
        label: folder name and arms.
        address: of the folder, relative to the page.
        status: how it ended, or why it cannot be read.
        data: name and fingerprint; only losses on equal data compare.
        unit: that losses are means over: token, image or pair.
        per_byte: tokens per byte of the validation text; None for other data.
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


def write_report(
    path: Path,
    title: str,
    results: Sequence[StudyResult],
    claims: Mapping[str, Claim],
    *,
    known: Sequence[RunSummary] = (),
) -> None:
    """Write the page of the studies.

    Links to run folders are relative to the page's folder, so they still work after both are moved together. Missing
    or broken runs are linked and labelled as such.

    Args:
        path: of the page; its folder must exist.
        claims: the ledger, {id: claim}; empty for a page about runs alone.
        known: runs that were read already.

    Raises: UserError if the page cannot be written; ValueError for a finding of a claim that is not in the ledger.
    """
    folders = runs_of(results)
    views = read_views(folders[:MOST_RUNS], path.parent, known)
    page = render_report(title, results, claims, views, base=path.parent, all_runs=len(folders))
    try:
        with replacing(path) as temporary:
            # File names need not be valid text: what cannot be encoded becomes a question mark.
            temporary.write_bytes(page.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def render_report(
    title: str,
    results: Sequence[StudyResult],
    claims: Mapping[str, Claim],
    views: Sequence[RunView],
    *,
    base: Path,
    all_runs: int,
) -> str:
    """Return the page as text.

    Args:
        views: runs to compare side by side; fewer than two make no comparison.
        base: folder of the page.
        all_runs: number of runs that the page links to.
    """
    found = by_claim(results, claims) if claims else []
    measured = [(claim, overall(findings), findings) for claim, findings in found if findings]
    verdicts = Counter(verdict for _, verdict, _ in measured)
    facts = {
        "studies": ", ".join(f"{result.name} ({result.budget})" for result in results),
        "claims": ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "none measured",
        "not measured here": str(len(claims) - len(measured)),
        "runs": str(all_runs),
    }
    studies = [
        {
            "anchor": study_anchor(result),
            "title": result.title,
            "facts": ({"study": f"{result.name}, at budget {result.budget}"} if result.budget else {}) | result.facts,
            "missing": [*result.missing, *(f"failed: {line}" for line in result.failures)],
            "pictures": result.pictures,
            "tables": result.tables,
        }
        for result in results
    ]
    compared = _for_comparison(sorted(views, key=lambda view: view.label)) if len(views) > 1 else []
    links = [("claims", "Claims")] if claims else []
    links += [(study_anchor(result), result.title) for result in results]
    links += [("compare", "Two runs side by side")] if compared else []
    return render_page(
        "study.html",
        title,
        styles=["study.css"],
        scripts=["compare.js"],
        facts=facts if claims else {},
        links=links,
        measured=measured,
        not_measured=[claim for claim, findings in found if not findings],
        studies=studies,
        views=compared,
        base=base,
        all_runs=all_runs,
        most_runs=MOST_RUNS,
        most_points=MOST_POINTS,
    )


def runs_of(results: Iterable[StudyResult]) -> list[Path]:
    """Return every run folder that the results name, once, in their order."""
    found: dict[Path, Path] = {}
    for result in results:
        of_findings = (finding.runs for finding in result.findings)
        of_tables = (runs for table in result.tables for runs in table.runs)
        for run in (run for runs in (*of_findings, *of_tables) for run in runs):
            found.setdefault(run.absolute(), run)
    return list(found.values())


def study_anchor(result: StudyResult) -> str:
    """Return the anchor of a study on the page: letters, digits and hyphens."""
    name = f"study-{result.name}-{result.budget}"
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def read_views(folders: Sequence[Path], base: Path, known: Sequence[RunSummary] = ()) -> list[RunView]:
    """Read runs for comparison; the status of a missing or broken run states the problem.

    Args:
        base: folder of the page.
        known: runs that were read already; only their curves are still read.
    """
    summaries = {run.folder.absolute(): run for run in known}
    names = Counter(folder.name for folder in folders)
    views = []
    for folder in folders:
        name = folder.name if names[folder.name] == 1 else f"{folder.parent.name}/{folder.name}"
        summary = summaries.get(folder.absolute()) or summarise_run(folder)
        views.append(_view(summary, name, run_address(folder, base)))
    return views


def _for_comparison(views: Sequence[RunView]) -> list[dict[str, Any]]:
    """The runs for JSON, without the configuration keys that are equal in all runs."""
    known = [view.config for view in views if view.config]  # unreadable runs have no configuration to compare
    keys = sorted({key for config in known for key in config})
    differing = [key for key in keys if len({config.get(key) for config in known}) > 1]
    return [
        asdict(view) | {"config": {key: view.config[key] for key in differing if key in view.config}} for view in views
    ]


def _view(run: RunSummary, name: str, address: str) -> RunView:
    if run.problem is not None:
        problem = run.problem.replace(f"{run.folder}/", "")  # the address names the folder
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
    """The finite validation losses, thinned evenly between both ends; the last value of a step logged twice."""
    steps, losses, _ = metrics.select(arm=arm, name="validation/loss")
    last = {int(step): float(loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)}
    points = sorted(last.items())
    if len(points) > MOST_POINTS:
        points = [points[index] for index in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]
    return [step for step, _ in points], [float(f"{loss:.{_SIGNIFICANT}g}") for _, loss in points]


def _config(config: dict[str, Any] | None) -> dict[str, str]:
    """Dotted keys and values as text; a key added since the run gets the value that the run had."""
    if not config:
        return {}
    flat = ADDED_LATER | {str(key): value for key, value in flatten(config).items()}
    return {key: _text(value) for key, value in flat.items()}


def _text(value: object) -> str:
    """A value short enough for a page; a cut value is shown with its hash, to tell it from others."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except TypeError:  # YAML allows keys that JSON does not
        text = str(value)
    if len(text) <= _MOST_LETTERS:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{text[:_MOST_LETTERS]}… ({len(text)} characters, sha256 {digest}…)"
