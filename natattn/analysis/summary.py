"""Printed tables of one run, and of many runs with mean and spread over seeds."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TextIO

from rich.console import Console
from rich.text import Text

from natattn.analysis.groups import Group, group_runs
from natattn.analysis.quantities import FINAL_LOSS, QUANTITIES, TASK_METRICS, Quantity, loss, memory, points, share
from natattn.analysis.runs import RunSummary, find_runs, summarise_run
from natattn.errors import UserError
from natattn.report.table import NOTHING, Table
from natattn.report.writers import to_terminal
from natattn.statistics.paired import mean, standard_deviation
from natattn.storage.redaction import one_line
from natattn.tracking.console import signed

_WIDTH_WITHOUT_TERMINAL = 240  # wide enough for the table of a sweep


def print_report(paths: Sequence[str], *, stream: TextIO) -> list[RunSummary]:
    """Print the table of the runs in the folders ``paths``, and return what was read of every run.

    Raises: UserError if there is no run, or, after printing what is wrong with each, if none can be read.
    """
    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    # Names and words of runs are not markup.
    console = Console(file=stream, highlight=False, markup=False, emoji=False, width=width)
    summaries = [summarise_run(folder) for folder in find_runs(paths)]
    if len(summaries) == 1 and summaries[0].problem is None:
        console.print(to_terminal(run_table(summaries[0]), compact=True))
        return summaries
    groups, left_out = group_runs(summaries)
    data_sets = by_data(groups)
    if len(data_sets) > 1:
        console.print(f"{len(data_sets)} different data sets: their losses do not compare, and are not pooled\n")
    for of_one_data in data_sets:
        sweep = to_terminal(sweep_table(of_one_data), compact=True)
        fits = console.measure(sweep, options=console.options.update(max_width=10_000)).maximum <= console.width
        # On a narrow screen one table for each group.
        each_group = (to_terminal(group_table(group), compact=True) for group in of_one_data)
        for table in [sweep] if fits else each_group:
            console.print(table)
            console.print()
    for line in left_out:
        console.print(Text(one_line(line)), soft_wrap=True)
    if all(summary.problem is not None for summary in summaries):
        raise UserError(f"no readable run in {', '.join(paths)} (found {len(summaries)}, all broken)")
    return summaries


def by_data(groups: Sequence[Group]) -> list[list[Group]]:
    """Return the groups of each data set: losses on different data do not compare."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.data.fingerprint if group.data else "", []).append(group)
    return list(found.values())


def run_table(summary: RunSummary) -> Table:
    """Return the table of one run: quantities in rows, arms in columns, and the difference candidate − reference."""
    title = summary.label if summary.seed is None else f"{summary.label} · seed {summary.seed}"
    return group_table(Group(title, (summary,)))


def group_table(group: Group) -> Table:
    """Return the table of runs that differ only in their seed: as ``run_table``, with mean and spread over seeds."""
    names = group.arm_names
    compares = group.reference is not None and group.candidate is not None
    headings = [f"nats/{group.runs[0].unit}", *(arm_label(group, name) for name in names)]
    rows = [("status", *(arm_status(group, name) for name in names))]
    for quantity in known_quantities([group]):
        cells = (_cell(quantity, group, name) for name in names)
        rows.append((quantity.title, *cells, *([_difference(quantity, group)] if compares else [])))
    if any(run.unit == "token" for run in group.runs):
        rows.append(("below the bigram model", *(below_bigram(group, name) for name in names)))
    if compares:
        headings.append("difference")
        rows = [row if len(row) == len(headings) else (*row, "") for row in rows]
    return Table(
        "", group.label, "\n".join(notes([group])), tuple(headings), tuple(rows), align="l".ljust(len(headings), "r")
    )


def sweep_table(groups: Sequence[Group]) -> Table:
    """Return the table of many runs: a row for each arm of each group of runs that differ only in their seed.

    Cells are mean ± sample standard deviation over the seeds. A diverged arm counts in `n` but not in the mean.
    Quantities that no run has are left out.
    """
    columns: dict[str, Callable[[Group, str], str]] = {"arm": arm_label, "n": lambda group, name: str(len(group.runs))}
    for quantity in known_quantities(groups):
        if quantity.heading is not None:
            columns[quantity.heading] = partial(_cell, quantity)
        if quantity is FINAL_LOSS:
            columns["difference"] = lambda group, name: (
                _difference(FINAL_LOSS, group) if name == group.candidate else ""
            )
    if any(run.unit == "token" for group in groups for run in group.runs):
        columns["< bigram"] = below_bigram
    columns["status"] = arm_status
    rows = []
    for group in groups:
        for name in group.arm_names:
            cells = (cell(group, name) for cell in columns.values())
            # The spread and the number below the mean: a column is as narrow as its longest number.
            folded = (text.replace(" ± ", "\n± ").replace(" (", "\n(") for text in cells)
            rows.append(("" if name != group.arm_names[0] else group.label, *folded))
        rows.append(("",) * (1 + len(columns)))
    align = "l" + "".join("l" if heading in ("arm", "status") else "r" for heading in columns)
    return Table("", "", "\n".join(notes(groups)), ("", *columns), tuple(rows), align=align)


def known_quantities(groups: Sequence[Group]) -> list[Quantity]:
    """Return the quantities that some arm has; a target that no arm reached is one of them."""
    arms = [arm for group in groups for name in group.arm_names for arm in group.arms(name)]
    return [
        quantity
        for quantity in QUANTITIES
        if any(quantity.value(*arm) is not None or quantity.missing(*arm) != NOTHING for arm in arms)
    ]


def counted_values(quantity: Quantity, group: Group, name: str) -> list[float]:
    """Return the quantity of an arm in every run that has it. Diverged arms count only if all have diverged."""
    arms = group.arms(name)
    # The best loss of an arm that diverged half-way is informative, but does not belong in a mean.
    counted = [(run, arm) for run, arm in arms if arm.diverged_at is None] or arms
    return [value for arm in counted if (value := quantity.value(*arm)) is not None]


def _cell(quantity: Quantity, group: Group, name: str) -> str:
    arms = group.arms(name)
    values = counted_values(quantity, group, name)
    if not values:
        return quantity.missing(*arms[0])
    text = quantity.show(mean(values))
    if len(values) > 1:
        text += f" ± {quantity.show(standard_deviation(values))}"
    return text if len(values) == len(arms) else f"{text} ({len(values)} of {len(arms)})"


def paired_differences(quantity: Quantity, group: Group) -> list[float]:
    """Return candidate − reference within each run that has both; empty if nothing is compared."""
    if group.candidate is None or group.reference is None:
        return []
    differences = []
    for run in group.runs:
        candidate, reference = run.arm(group.candidate), run.arm(group.reference)
        if candidate is None or reference is None or candidate.diverged_at != reference.diverged_at:
            continue
        mine, theirs = quantity.value(run, candidate), quantity.value(run, reference)
        if mine is not None and theirs is not None:
            differences.append(mine - theirs)
    return differences


def _difference(quantity: Quantity, group: Group) -> str:
    """The mean over runs of candidate − reference, with its spread."""
    if not (quantity.is_loss or quantity.is_share) or group.candidate is None or group.reference is None:
        return ""
    differences = paired_differences(quantity, group)
    if not differences:
        return NOTHING
    centre, spread = mean(differences), standard_deviation(differences)
    if quantity.is_share:
        return f"{points(centre)}{'' if len(differences) == 1 else f' ± {100 * spread:.1f}'} points"
    return signed(centre) if len(differences) == 1 else f"{signed(centre)} ± {spread:.5f}"


def below_bigram(group: Group, name: str) -> str:
    """Return "yes" or "no": the arm ended below the bigram model's loss; for several runs, how many did."""
    arms = group.arms(name)
    below = sum(
        arm.final_loss is not None
        and run.data is not None
        and run.data.text is not None
        and arm.final_loss < run.data.text.held_out_bigram_entropy
        for run, arm in arms
    )
    return ("yes" if below else "no") if len(arms) == 1 else f"{below} of {len(arms)}"


def arm_status(group: Group, name: str) -> str:
    """Return how the arm ended, or its step; for several runs, how many ended in each way."""
    if len(group.runs) == 1:
        run, arm = group.arms(name)[0]
        if arm.diverged_at is not None:
            return f"diverged at step {arm.diverged_at}"
        status = run.status.replace("_", " ")
        return status if run.status == "finished" or arm.last_step is None else f"{status} at step {arm.last_step}"
    counts = Counter("diverged" if arm.diverged_at is not None else run.status for run, arm in group.arms(name))
    words = {status.replace("_", " "): count for status, count in counts.items()}
    return next(iter(words)) if len(words) == 1 else "\n".join(f"{count} {word}" for word, count in words.items())


def arm_label(group: Group, name: str) -> str:
    """Return the name of an arm, marked if it sees the tokens that it predicts."""
    return f"{name} LEAKY" if any(arm.leaky for _, arm in group.arms(name)) else name


def notes(groups: Sequence[Group]) -> list[str]:
    """Return lines about the data and the runs, rather than one arm.

    Entropies are in nats/token; the bigram model has seen the training text only. Chance is what a model reaches that
    ignores its input.
    """
    runs = [run for group in groups for run in group.runs]
    found = []
    if groups and (data := groups[0].data) is not None:
        found.append(f"data: {data.name} ({data.fingerprint[:12]})")
        if (text := data.text) is not None:
            found[0] += f", {1 / text.tokens_per_byte:.2f} bytes/token"
            plug_in = (
                "" if text.plug_in_bigram_entropy is None else f"; plug-in entropy {text.plug_in_bigram_entropy:.4f}"
            )
            floor = "" if text.floor is None else f", floor {text.floor:.4f}"
            bigram = f"bigram model {text.held_out_bigram_entropy:.4f} (held out{plug_in})"
            found.append(f"entropies: unigram {text.unigram_entropy:.4f}, {bigram}{floor}")
        else:
            shares = (f", {title} {share(data.chance[name])}" for name, title in TASK_METRICS.items()
                      if name in data.chance)  # fmt: skip
            found.append(f"chance: loss {loss(data.chance['loss'])}{''.join(shares)}")
    if targets := [run.target for run in runs if run.target is not None]:
        shown = f", {targets[0]:.4f}" if len(runs) == 1 else ""
        found.append(f"target: the reference's final validation loss{shown}")
    if memories := [run.process_peak_memory_bytes for run in runs if run.process_peak_memory_bytes is not None]:
        found.append(f"peak memory of the process: {memory(max(memories))}")
    found += [f"{arm.name} diverged: {arm.cause}" for run in runs for arm in run.arms if arm.cause and len(runs) == 1]
    if identical := sum(run.identical for run in runs):
        where = "" if len(runs) == 1 else f" in {identical} of {len(runs)} runs"
        found.append(f"identical arms{where}: updated alike, nothing was compared")
    if any(arm.leaky for run in runs for arm in run.arms):
        found.append("LEAKY: sees the tokens it predicts; its losses are no evidence")
    return found
