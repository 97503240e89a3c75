"""The table of a run, and of any set of runs with mean and spread over seeds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from natattn.analysis.data_facts import TextFacts
from natattn.analysis.groups import Group, group_runs
from natattn.analysis.quantities import FINAL_LOSS, QUANTITIES, TASK_METRICS, Quantity, loss, memory, points, share
from natattn.analysis.runs import ArmSummary, RunSummary, find_runs, summarise_run
from natattn.errors import UserError
from natattn.statistics.paired import mean, standard_deviation
from natattn.storage.redaction import one_line
from natattn.tracking.console import signed

# Wide enough for the table of a sweep; where there is no terminal nothing needs to be folded.
_WIDTH_WITHOUT_TERMINAL = 240

# What the table of a sweep says about one arm of one group.
_Cell = Callable[[Group, str], str | Text]


def run_table(summary: RunSummary) -> Table:
    """The table of one run: quantities in rows, arms in columns, and the difference candidate − reference."""
    title = summary.label if summary.seed is None else f"{summary.label} · seed {summary.seed}"
    return _group_table(Group(title, (summary,)))


def print_report(paths: Sequence[str], *, stream: TextIO) -> list[RunSummary]:
    """Prints the table of the run, or of the runs, in the folders `paths`, and returns what it read of every run.

    Raises UserError if there is none, or, after saying what is wrong with each, if none can be read.
    """
    width = None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    # Names and words of runs are no markup.
    console = Console(file=stream, highlight=False, markup=False, emoji=False, width=width)
    summaries = [summarise_run(folder) for folder in find_runs(paths)]
    if len(summaries) == 1 and summaries[0].problem is None:
        console.print(run_table(summaries[0]))
        return summaries
    groups, left_out = group_runs(summaries)
    tables = by_data(groups)
    if len(tables) > 1:
        console.print(f"{len(tables)} different data sets: their losses do not compare, and are not pooled\n")
    for of_one_data in tables:
        _print_groups(console, of_one_data)
    for line in left_out:
        console.print(Text(one_line(line)), soft_wrap=True)
    if all(summary.problem is not None for summary in summaries):
        raise UserError(f"no readable run in {', '.join(paths)} (found {len(summaries)}, all broken)")
    return summaries


def by_data(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups of each data set by themselves: losses on different data do not compare."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.data.fingerprint if group.data else "", []).append(group)
    return list(found.values())


def _print_groups(console: Console, groups: list[Group]) -> None:
    """One table where it is not wider than the screen, else one for each group."""
    table = sweep_table(groups)
    fits = console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width
    for each in [table] if fits else [_group_table(group) for group in groups]:
        console.print(each)
        console.print()


def _group_table(group: Group) -> Table:
    compares = group.reference is not None and group.candidate is not None
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=Text(group.label, style="bold"))
    table.title_justify = table.caption_justify = "left"
    table.caption = Text("\n".join(notes([group])), style="not italic")
    table.add_column(f"nats/{group.runs[0].unit}", style="dim", no_wrap=True)
    for name in group.arm_names:
        table.add_column(_arm_label(group, name), justify="right")
    if compares:
        table.add_column("difference", justify="right", style="cyan")
    table.add_row("status", *(arm_status(group, name) for name in group.arm_names))
    for quantity in known_quantities([group]):
        cells = [_cell(quantity, group, name) for name in group.arm_names]
        table.add_row(quantity.title, *cells, *([_difference(quantity, group)] if compares else []))
    if any(run.unit == "token" for run in group.runs):
        table.add_row("below the bigram model", *(below_bigram(group, name) for name in group.arm_names))
    return table


def sweep_table(groups: list[Group]) -> Table:
    """The table of many runs: a row for each arm of each group of runs that are equal in all but the seed.

    Cells are mean ± sample standard deviation over the seeds; a diverged arm counts in `n` and not in the mean.
    Quantities that no run knows are left out.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    table.caption = Text("\n".join(notes(groups)), style="not italic")
    columns = _sweep_columns(groups)
    table.add_column("", max_width=40)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("arm", "status") else "right")
    for group in groups:
        for index, name in enumerate(group.arm_names):
            cells = (_folded(cell(group, name)) for cell in columns.values())
            table.add_row(Text("" if index else group.label, style="bold"), *cells)
        table.add_row()
    return table


def _sweep_columns(groups: list[Group]) -> dict[str, _Cell]:
    columns: dict[str, _Cell] = {"arm": _arm_label, "n": lambda group, name: str(len(group.runs))}
    for quantity in known_quantities(groups):
        if quantity.heading is not None:
            columns[quantity.heading] = partial(_cell, quantity)
        if quantity is FINAL_LOSS:
            columns["difference"] = lambda group, name: (
                _difference(FINAL_LOSS, group) if name == group.candidate else ""
            )
    if any(run.unit == "token" for group in groups for run in group.runs):
        columns["< bigram"] = below_bigram
    return columns | {"status": arm_status}


def _folded(cell: str | Text) -> str | Text:
    """Spread and number under the mean: a column as narrow as its longest number."""
    return cell if isinstance(cell, Text) else cell.replace(" ± ", "\n± ").replace(" (", "\n(")


def known_quantities(groups: list[Group]) -> list[Quantity]:
    """The quantities that some arm has; a target that no arm reached is known not to be reached."""
    arms = [arm for group in groups for name in group.arm_names for arm in group.arms(name)]
    return [
        each for each in QUANTITIES if any(each.value(*arm) is not None or each.missing(*arm) != "—" for arm in arms)
    ]


def counted_values(quantity: Quantity, group: Group, name: str) -> list[float]:
    """The quantity of that arm in every run that has it; of arms that diverged only where all have."""
    arms = group.arms(name)
    # The best loss of an arm that diverged half-way is worth a look, but not a place in a mean.
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
    """Candidate minus reference within each run that has both; none where nothing is compared."""
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
    """Candidate minus reference, taken within each run and then averaged."""
    if not (quantity.is_loss or quantity.is_share) or group.candidate is None or group.reference is None:
        return ""
    differences = paired_differences(quantity, group)
    if not differences:
        return "—"
    centre, spread = mean(differences), standard_deviation(differences)
    if quantity.is_share:
        return f"{points(centre)}{'' if len(differences) == 1 else f' ± {100 * spread:.1f}'} points"
    return signed(centre) if len(differences) == 1 else f"{signed(centre)} ± {spread:.5f}"


def below_bigram(group: Group, name: str) -> str:
    """Whether the arm ended below the bigram model's loss; over several runs, how many did."""
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
    """How the arm ended, or where it is; over several runs, how many."""
    if len(group.runs) == 1:
        return _status_of_one(*group.arms(name)[0])
    counts = Counter("diverged" if arm.diverged_at is not None else run.status for run, arm in group.arms(name))
    words = [status.replace("_", " ") for status in counts]
    return (
        words[0]
        if len(words) == 1
        else "\n".join(f"{n} {word}" for n, word in zip(counts.values(), words, strict=True))
    )


def _status_of_one(run: RunSummary, arm: ArmSummary) -> str:
    if arm.diverged_at is not None:
        return f"diverged at step {arm.diverged_at}"
    status = run.status.replace("_", " ")
    return status if run.status == "finished" or arm.last_step is None else f"{status} at step {arm.last_step}"


def _arm_label(group: Group, name: str) -> Text:
    leaky = any(arm.leaky for _, arm in group.arms(name))
    return Text.assemble(name, (" LEAKY", "bold red")) if leaky else Text(name)


def _levels(data: TextFacts) -> str:
    """What counting alone would reach, in nats/token; the bigram model has seen the training text only."""
    plug_in = "" if data.plug_in_bigram_entropy is None else f"; plug-in entropy {data.plug_in_bigram_entropy:.4f}"
    bigram = f"bigram model {data.held_out_bigram_entropy:.4f} (held out{plug_in})"
    floor = "" if data.floor is None else f", floor {data.floor:.4f}"
    return f"entropies: unigram {data.unigram_entropy:.4f}, {bigram}{floor}"


def _chance(values: Mapping[str, float]) -> str:
    """What a model reaches that does not look at its input."""
    shares = (f"{title} {share(values[name])}" for name, title in TASK_METRICS.items() if name in values)
    return ", ".join([f"loss {loss(values['loss'])}", *shares])


def notes(groups: list[Group]) -> list[str]:
    """What belongs to the data and the runs, rather than to an arm."""
    runs = [run for group in groups for run in group.runs]
    found = []
    if groups and (data := groups[0].data) is not None:
        start = f"data: {data.name} ({data.fingerprint[:12]})"
        if data.text is not None:
            found += [f"{start}, {1 / data.text.tokens_per_byte:.2f} bytes/token", _levels(data.text)]
        else:
            found += [start, f"chance: {_chance(data.chance)}"]
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
