"""The tables and the picture of a study that compares arms: tuning, what each arm reached, and differences."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from natattn.analysis.bands import series
from natattn.analysis.pictures.figures import COLOURS, MARKERS, drawn
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.analysis.sections.section import Picture, table
from natattn.reproduce.comparisons import Judged
from natattn.reproduce.plan import Plan
from natattn.reproduce.results import Badge, Cell, Estimate, Finding, StudyTable
from natattn.reproduce.trials import Trials
from natattn.statistics import mean, t_interval

Members = Sequence[tuple[RunSummary, ArmSummary]]
MEBIBYTE = 2**20


def tuning_table(trials: Trials, plan: Plan) -> StudyTable | None:
    """Mean last losses of the tuning seeds over the grid, and the value that won."""
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
        f"Last validation loss, nats/token, over {trials.study.tuning.key.lstrip('+')}: mean of seed {seeds}, which "
        "no other table uses. The same grid for every arm; placebos train at the value of the arm they stand in for.",
        ("data", "arm", "best", *(f"{rate:g}" for rate in rates)),
        tuple(rows),
        tuple(() for _ in rows),
    )


def arms_table(trials: Trials, plan: Plan) -> StudyTable:
    """What each arm reached on the table's seeds: quality, convergence, stability and cost."""
    rows, runs = [], []
    for corpus in trials.study.corpora:
        target = _target(trials, plan, corpus)
        for arm in (arm for arm in trials.arms.values() if corpus in arm.corpora):
            members = trials.finals(plan, corpus, arm.name)
            rate = plan.tuned[corpus, arm.tuned_as].best if arm.tuned_as is not None else None
            cells = [_over_seeds(members, quantity) for _, quantity in QUANTITIES]
            rows.append((corpus, arm.name, rate, len(members), *cells, _reached(members, target), _status(members)))
            runs.append(trials.folders(plan, corpus, arm.name))
    heads = ["data", "arm", "tuned", "seeds", *(title for title, _ in QUANTITIES)]
    kept = [place for place, head in enumerate(heads) if head not in dict(QUANTITIES) or _is_known(rows, place)]
    against = f"the final loss of {trials.study.target}" if trials.study.target else "no arm's loss"
    seeds = ", ".join(map(str, trials.study.seeds))
    return StudyTable(
        f"{trials.study.name}_arms",
        "What each arm reached",
        f"Seeds {seeds}: means with 95 % t intervals. Steps to the target, {against} with the same seed: the mean, a "
        "run that does not reach it counting with its last step, and how many did. Pattern divergence: mean "
        "Jensen–Shannon divergence of a fixed batch's patterns between evaluations, second half, nats. Seconds and "
        "memory are of machines that did other work too.",
        (*(heads[place] for place in kept), "steps to target", "status"),
        tuple((*(row[place] for place in kept), *row[-2:]) for row in rows),
        tuple(runs),
    )


def differences_table(trials: Trials, plan: Plan, judged: Sequence[Judged]) -> StudyTable:
    """Every difference with its interval, adjusted within data and metric."""
    rows: list[tuple[Cell, ...]] = []
    runs = []
    for row in judged:
        difference = row.difference
        rows.append((
            row.corpus, row.title, row.comparison.claim, Estimate(difference.mean, *difference.interval),
            difference.count, difference.p_value, difference.sign_flip_p_value,
            Badge(row.verdict) if row.verdict is not None else None, _note(trials, plan, row),
        ))  # fmt: skip
        runs.append(trials.folders(plan, row.corpus, row.arm, row.other))
    return StudyTable(
        f"{trials.study.name}_differences",
        "Differences",
        f"Paired by seed, data and initial weights; Holm-adjusted 95 % intervals and p-values within one data set and "
        f"metric, placebos included. δ = {trials.study.indifference:g}. Losses in nats/token.",
        ("data", "difference", "claim", "mean", "pairs", "p", "p of sign flips", "verdict", "note"),
        tuple(rows),
        tuple(runs),
    )


def findings(trials: Trials, plan: Plan, judged: Sequence[Judged]) -> list[Finding]:
    """The differences that bear on claims."""
    found = []
    for row in judged:
        if row.verdict is None or row.comparison.claim is None:
            continue
        found.append(
            Finding(
                claim=row.comparison.claim,
                study=trials.study.name,
                what=row.title,
                where=row.corpus,
                estimate=Estimate(row.difference.mean, *row.difference.interval),
                unit="" if row.comparison.metric in RATIOS else "nats/token",
                count=row.difference.count,
                verdict=row.verdict,
                p_value=row.difference.p_value,
                note=_note(trials, plan, row),
                runs=trials.folders(plan, row.corpus, row.arm, row.other),
            )
        )
    return found


def differences_picture(trials: Trials, judged: Sequence[Judged]) -> Picture | None:
    """Final-loss differences with their intervals, a panel for each data set."""
    rows = [row for row in judged if row.comparison.metric == "final_loss" and row.difference.count > 1]
    corpora = list(dict.fromkeys(row.corpus for row in rows))
    if not rows:
        return None
    names = list(dict.fromkeys(f"{row.arm} − {row.other}" for row in rows))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
        for place, (panel, corpus) in enumerate(zip(panels, corpora, strict=True)):
            panel.axvline(0, color="#555555", linewidth=0.9)
            panel.axvspan(-trials.study.indifference, trials.study.indifference, color="#dddddd", linewidth=0)
            for row in (row for row in rows if row.corpus == corpus):
                height, (low, high) = names.index(f"{row.arm} − {row.other}"), row.difference.interval
                panel.plot([low, high], [height, height], color=COLOURS[place % len(COLOURS)])
                panel.plot(row.difference.mean, height, MARKERS[place % len(MARKERS)], color=COLOURS[place])
            panel.set(title=corpus, xlabel="final loss difference, nats/token")
        panels[0].set_yticks(range(len(names)), names, fontsize=8)
        panels[0].invert_yaxis()

    data = table(
        ("data", "difference", "mean", "low", "high", "pairs"),
        [
            (r.corpus, f"{r.arm} − {r.other}", r.difference.mean, *r.difference.interval, r.difference.count)
            for r in rows
        ],
    )
    return Picture(
        f"{trials.study.name}_differences",
        "Differences of the last validation loss with Holm-adjusted 95 % intervals; left of zero the first is better. "
        f"Grey: ±δ = {trials.study.indifference:g}.",
        data,
        drawn(draw, (3.2 + 3.2 * len(corpora), 1.2 + 0.26 * len(names))),
    )


RATIOS = ("steps_to_target", "pattern_divergence", "step_time")
Quantity = Callable[[RunSummary, ArmSummary], float | None]


def _divergence(run: RunSummary, arm: ArmSummary) -> float | None:
    steps, values = series(run, arm, "attention/layer_*/pattern_divergence")
    return float(values[steps >= steps[-1] / 2].mean()) if len(steps) else None


QUANTITIES: tuple[tuple[str, Quantity], ...] = (
    ("final loss", lambda run, arm: arm.final_loss),
    ("test loss", lambda run, arm: arm.test_loss),
    ("pattern divergence", _divergence),
    ("step time ratio", lambda run, arm: arm.step_time_ratio),
    ("seconds/step", lambda run, arm: arm.step_seconds),
)


def _over_seeds(members: Members, quantity: Quantity) -> Cell:
    values = [value for run, arm in members if (value := quantity(run, arm)) is not None]
    if not values:
        return None
    centre, half = t_interval(values)
    return Estimate(centre, centre - half, centre + half)


def _is_known(rows: Sequence[Sequence[Cell]], place: int) -> bool:
    return any(row[place] is not None for row in rows)


def _target(trials: Trials, plan: Plan, corpus: str) -> dict[int | None, float]:
    """{seed: final loss of the study's target arm}."""
    if trials.study.target is None:
        return {}
    return {
        run.seed: arm.final_loss
        for run, arm in trials.finals(plan, corpus, trials.study.target)
        if arm.final_loss is not None
    }


def _reached(members: Members, targets: dict[int | None, float]) -> str | None:
    """Mean steps to the target, and how many runs reached it."""
    times, reached = [], 0
    for run, arm in members:
        if run.seed not in targets:
            continue
        steps, losses = series(run, arm, "validation/loss")
        at = [int(step) for step, loss in zip(steps, losses, strict=True) if loss <= targets[run.seed]]
        reached += bool(at)
        times.append(at[0] if at else run.planned_steps or int(steps[-1]))
    return f"{mean([float(time) for time in times]):.0f} ({reached} of {len(times)})" if times else None


def _status(members: Members) -> str:
    diverged = sum(arm.diverged_at is not None for _, arm in members)
    leaky = any(arm.leaky for _, arm in members)
    words = [f"{diverged} diverged"] * bool(diverged) + ["LEAKY"] * leaky
    return ", ".join(words) or ("finished" if members else "no runs")


def _note(trials: Trials, plan: Plan, row: Judged) -> str:
    """What bars or explains the verdict."""
    members = [trials.finals(plan, row.corpus, arm) for arm in (row.arm, row.other)]
    notes = [f"{row.missing} of {len(trials.arms[row.arm].seeds)} seeds missing or diverged"] * bool(row.missing)
    for name, found in zip((row.arm, row.other), members, strict=True):
        if any(arm.leaky for _, arm in found):
            notes.append(f"{name} is LEAKY: it sees the tokens that it predicts, its losses are no evidence")
    if row.unbeaten and row.difference.count > 1:
        notes.append(f"zero is not excluded against {', '.join(row.unbeaten)}")
    if row.difference.count and row.difference.mean == 0 and row.difference.interval == (0.0, 0.0):
        notes.append("identical: both were updated alike")
    return "; ".join(notes)
