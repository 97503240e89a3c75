"""The pictures of a study that compares arms: differences with intervals, and who reaches the target how soon."""

import math
from collections.abc import Sequence
from typing import Any

from natattn.report.figures import COLOURS, MARKERS, drawn
from natattn.report.section import Picture, table
from natattn.reproduce.figures import profile_figure
from natattn.reproduce.ledger import Comparison
from natattn.reproduce.plan import Plan, Trials
from natattn.reproduce.study_tables import steps_to_target, targets_of, unit_of_corpus

TICKS = (-1.0, -0.3, -0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def differences_picture(trials: Trials, plan: Plan, judged: Sequence[Comparison]) -> Picture | None:
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
                panel.plot(
                    row.difference.mean, height, MARKERS[place % len(MARKERS)], color=COLOURS[place % len(COLOURS)]
                )
            panel.set_xscale("symlog", linthresh=2 * trials.study.indifference or 0.02)  # far ones squeeze the rest
            low, high = panel.get_xlim()
            ticks = [tick for tick in TICKS if low <= tick <= high]
            panel.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
            panel.set_xticks([], minor=True)
            panel.set(title=corpus, xlabel=f"final loss difference, nats/{unit_of_corpus(trials, plan, corpus)}")
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


def profile_picture(trials: Trials, plan: Plan) -> Picture | None:
    """Performance profiles of steps to the target over all workloads, data sets × seeds; None below two of either.

    Placebos take part: an arm is to be ahead of them. A run that is missing has not reached the target; an arm without
    any run on a data set, in a study that is not finished, takes no part.
    """
    if trials.study.target is None:
        return None
    times: dict[str, list[float]] = {}
    for corpus in trials.study.corpora:
        targets = targets_of(trials, plan, corpus)
        arms = [arm for arm in trials.arms.values() if corpus in arm.corpora]
        members = {arm.name: {run.seed: (run, a) for run, a in trials.finals(plan, corpus, arm.name)} for arm in arms}
        there = [name for name in members if members[name]]
        for seed in sorted(seed for seed in targets if seed is not None):
            for name in there:
                found = members[name].get(seed)
                reached = steps_to_target([found], targets).for_profile if found is not None else (math.inf,)
                times.setdefault(name, []).extend(reached)
    most = max((len(of_arm) for of_arm in times.values()), default=0)
    whole = {name: of_arm for name, of_arm in times.items() if len(of_arm) == most}
    return profile_figure(whole, name=f"{trials.study.name}_profile") if most > 1 and len(whole) > 1 else None
