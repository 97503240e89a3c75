"""Tables of a study that compares arms: tuning, the results of each arm, and differences."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from natattn.analysis.bands import series
from natattn.analysis.differences import PAIRED_QUANTITIES, late_divergence
from natattn.analysis.quantities import TASK_METRICS, task_metric
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.report.table import Badge, Cell, Estimate, Finding, StudyTable
from natattn.reproduce.ledger import Comparison
from natattn.reproduce.plan import Plan, Trials
from natattn.statistics.profiles import TimesToTarget, times_to_target
from natattn.tasks import LanguageTask, MultimodalTask, VisionTask

Members = Sequence[tuple[RunSummary, ArmSummary]]
Quantity = Callable[[RunSummary, ArmSummary], float | None]
UNITS = {task.kind: task.unit for task in (LanguageTask, VisionTask, MultimodalTask)}
# {heading: quantity} of the table of arms, in its order.
QUANTITIES: tuple[tuple[str, Quantity], ...] = (
    ("final loss", lambda run, arm: arm.final_loss),
    ("test loss", lambda run, arm: arm.test_loss),
    *((f"test {title}", partial(task_metric, f"test/{name}")) for name, title in TASK_METRICS.items()),
    ("pattern divergence", late_divergence),
    ("step time ratio", lambda run, arm: arm.step_time_ratio),
    ("seconds/step", lambda run, arm: arm.step_seconds),
)
TIMES = ("steps to target", "seconds to target", "reached")


def tuning_table(trials: Trials, plan: Plan) -> StudyTable | None:
    """Return the mean last losses of the tuning seeds over the grid, and the best value; None without tuning."""
    if not plan.tuned or trials.study.tuning is None:
        return None
    rates = sorted({rate for found in plan.tuned.values() for rate in found.losses})
    rows = []
    for (corpus, arm), found in plan.tuned.items():
        best = None if found.best is None else f"{found.best:g}" + (" (edge)" if found.at_edge else "")
        losses = [found.losses.get(rate) for rate in rates]
        rows.append((corpus, arm, best, *(math.nan if loss is None else loss for loss in losses)))
    seeds = ", ".join(map(str, trials.study.tuning.seeds))
    return StudyTable(
        f"{trials.study.name}_tuning",
        "Tuning",
        f"Last validation loss, {_loss_units(trials, plan)}, over {trials.study.tuning.key.lstrip('+')}: mean of seed "
        f"{seeds}, which no other table uses. The same grid for every arm; placebos train at the value of the arm they "
        "stand in for.",
        ("data", "arm", "best", *(f"{rate:g}" for rate in rates)),
        tuple(rows),
        tuple(trials.tuning_folders(plan, corpus, arm) for corpus, arm in plan.tuned),
    )


def arms_table(trials: Trials, plan: Plan) -> StudyTable:
    """Return quality, convergence, stability and cost of each arm on the study's seeds."""
    rows, runs = [], []
    for corpus in trials.study.corpora:
        targets = targets_of(trials, plan, corpus)
        for arm in (arm for arm in trials.arms.values() if corpus in arm.corpora):
            members = trials.finals(plan, corpus, arm.name)
            rate = plan.tuned[corpus, arm.tuned_as].best if arm.tuned_as is not None else None
            cells = [_over_seeds(members, quantity) for _, quantity in QUANTITIES]
            steps, seconds = steps_to_target(members, targets), seconds_to_target(members, targets)
            reached = f"{sum(steps.reached)} of {len(arm.seeds)}" if steps.reached else None
            times = (_reached(steps), _reached(seconds), reached)
            rows.append((corpus, arm.name, rate, len(members), *cells, *times, _status(members)))
            runs.append(trials.folders(plan, corpus, arm.name))
    heads = ["data", "arm", "tuned", "seeds", *(title for title, _ in QUANTITIES), *TIMES, "status"]
    always = ("data", "arm", "seeds", "status")
    kept = [i for i, head in enumerate(heads) if head in always or any(row[i] is not None for row in rows)]
    against = f"the final loss of {trials.study.target}" if trials.study.target else "no arm's loss"
    seeds = ", ".join(map(str, trials.study.seeds))
    return StudyTable(
        f"{trials.study.name}_arms",
        "What each arm reached",
        f"Seeds {seeds}: means with 95 % t intervals. The target is {against} with the same seed; times to it are "
        "restricted means, a run that does not reach it counting with its end. Pattern "
        "divergence: mean Jensen–Shannon divergence of a fixed batch's patterns between evaluations, second half, "
        "nats. Seconds are of machines that did other work too.",
        tuple(heads[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        tuple(runs),
    )


def differences_table(trials: Trials, plan: Plan, judged: Sequence[Comparison]) -> StudyTable:
    """Return every difference with its interval, adjusted within one data set and metric."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for row in judged:
        difference = row.difference
        rows.append((
            row.corpus, row.title, row.comparison.claim, Estimate(difference.mean, *difference.interval),
            difference.count, difference.p_value, difference.sign_flip_p_value,
            _says(row), _note(trials, plan, row),
        ))  # fmt: skip
        runs.append(trials.folders(plan, row.corpus, row.arm, row.other))
    return StudyTable(
        f"{trials.study.name}_differences",
        "Differences",
        "Paired by seed, data and initial weights; Holm-adjusted 95 % intervals and p-values within one data set and "
        f"metric, placebos included. δ = {trials.study.indifference:g}{_other_deltas(trials)}. Losses in "
        f"{_loss_units(trials, plan)}. "
        "Rows without a claim say only on which side of zero the interval lies.",
        ("data", "difference", "claim", "mean", "pairs", "p", "p of sign flips", "verdict", "note"),
        tuple(rows),
        tuple(runs),
    )


def unit_of_corpus(trials: Trials, plan: Plan, corpus: str) -> str:
    """Return the unit of a corpus's losses (token, image or pair), from its runs or, without any, from its task."""
    runs = (trials.run(trial) for trial in plan.trials if trial.corpus == corpus)
    if (done := next((run for run in runs if run is not None), None)) is not None:
        return done.unit
    overrides = (*trials.study.base, *trials.study.corpora[corpus].overrides, *trials.study.of_budget)
    named = [override.removeprefix("task=") for override in overrides if override.startswith("task=")]
    return UNITS.get(named[-1], "token") if named else "token"


def _loss_units(trials: Trials, plan: Plan) -> str:
    units = (unit_of_corpus(trials, plan, corpus) for corpus in trials.study.corpora)
    return " or ".join(dict.fromkeys(f"nats/{unit}" for unit in units))


def _says(row: Comparison) -> Cell:
    """The verdict on a claim; without a claim, the side of zero, since no placebo was tested."""
    if row.verdict is None or row.comparison.claim is not None:
        return Badge(row.verdict) if row.verdict is not None else None
    return {"supported": row.comparison.claimed, "refuted": "the other way"}.get(row.verdict, row.verdict)


def _other_deltas(trials: Trials) -> str:
    """The δ of comparisons that override the study's."""
    own = {c.metric: c.indifference for c in trials.study.comparisons if c.indifference is not None}
    return "".join(f" ({PAIRED_QUANTITIES[metric].title}: {delta:g})" for metric, delta in own.items())


def findings(trials: Trials, plan: Plan, judged: Sequence[Comparison]) -> list[Finding]:
    """Return the differences that bear on claims, as findings."""
    result = []
    for row in judged:
        if row.verdict is None or row.comparison.claim is None:
            continue
        result.append(
            Finding(
                claim=row.comparison.claim,
                study=trials.study.name,
                what=row.title,
                where=row.corpus,
                estimate=Estimate(row.difference.mean, *row.difference.interval),
                unit=PAIRED_QUANTITIES[row.comparison.metric].unit_in(unit_of_corpus(trials, plan, row.corpus)),
                count=row.difference.count,
                verdict=row.verdict,
                p_value=row.difference.p_value,
                note=_note(trials, plan, row),
                runs=trials.folders(plan, row.corpus, row.arm, row.other),
            )
        )
    return result


def _over_seeds(members: Members, quantity: Quantity) -> Cell:
    values = [value for run, arm in members if (value := quantity(run, arm)) is not None]
    return Estimate.of_mean(values) if values else None


def targets_of(trials: Trials, plan: Plan, corpus: str) -> dict[int | None, float]:
    """Return {seed: final loss of the study's target arm}."""
    if trials.study.target is None:
        return {}
    return {
        run.seed: arm.final_loss
        for run, arm in trials.finals(plan, corpus, trials.study.target)
        if arm.final_loss is not None
    }


def steps_to_target(members: Members, targets: Mapping[int | None, float]) -> TimesToTarget:
    """Return the steps to the target arm's loss with the same seed, censored at the end; skip runs without a target."""
    return times_to_target(
        (*series(run, arm, "validation/loss"), targets[run.seed], run.planned_steps or 1)
        for run, arm in members
        if run.seed in targets
    )


def seconds_to_target(members: Members, targets: Mapping[int | None, float]) -> TimesToTarget:
    """Return the training seconds to the target, without evaluations; otherwise as ``steps_to_target``.

    An interrupted run is censored at the time that all of its planned steps would take, so stopping early is no gain.
    """
    measured = []
    for run, arm in members:
        steps, losses = series(run, arm, "validation/loss")
        at, seconds = series(run, arm, "time/train_seconds")
        both = np.intersect1d(steps, at)
        if run.seed in targets and len(both) > 1:
            at_both = seconds[np.isin(at, both)]
            planned = float(at_both[-1]) * max(1.0, (run.planned_steps or both[-1]) / max(1, both[-1]))
            measured.append((at_both, losses[np.isin(steps, both)], targets[run.seed], planned))
    return times_to_target(measured)


def _reached(times: TimesToTarget) -> Cell:
    """The restricted mean with its t interval."""
    return Estimate.of_mean(times.times) if times.times else None


def _status(members: Members) -> str:
    diverged = sum(arm.diverged_at is not None for _, arm in members)
    leaky = any(arm.leaky for _, arm in members)
    words = [f"{diverged} diverged"] * bool(diverged) + ["LEAKY"] * leaky
    return ", ".join(words) or ("finished" if members else "no runs")


def _note(trials: Trials, plan: Plan, row: Comparison) -> str:
    """The reasons for a verdict or for its absence."""
    members = [trials.finals(plan, row.corpus, arm) for arm in (row.arm, row.other)]
    notes = [f"{row.missing} of {len(trials.arms[row.arm].seeds)} seeds missing or diverged"] * bool(row.missing)
    for name, found in zip((row.arm, row.other), members, strict=True):
        if any(arm.leaky for _, arm in found):
            notes.append(f"{name} is LEAKY: it sees the tokens that it predicts, its losses are no evidence")
    if row.unbeaten and row.difference.count > 1:
        notes.append(f"zero is not excluded against {', '.join(row.unbeaten)}")
    is_loss = row.comparison.metric in ("final_loss", "mean_loss")
    if is_loss and row.difference.count and row.difference.mean == 0 and row.difference.interval == (0.0, 0.0):
        notes.append("identical: both were updated alike")
    return "; ".join(notes)
