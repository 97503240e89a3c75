"""The page of `natattn report`: a table and curves of the runs on each data set, and any two runs side by side."""

import glob
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from natattn.analysis.bands import LEAST_SEEDS, band
from natattn.analysis.groups import Group, group_runs
from natattn.analysis.quantities import FINAL_LOSS, Quantity
from natattn.analysis.run_set import Treatment, treatments_of
from natattn.analysis.runs import RunSummary
from natattn.analysis.summary import (
    arm_label,
    arm_status,
    below_bigram,
    by_data,
    counted_values,
    known_quantities,
    notes,
    paired_differences,
)
from natattn.config.messages import unknown_key
from natattn.errors import UserError
from natattn.report.figures import Line, bands
from natattn.report.section import Picture, table
from natattn.report.table import NOTHING, Cell, Estimate, Table, number_text
from natattn.reproduce.report import write_report
from natattn.reproduce.results import StudyResult
from natattn.statistics.paired import mean

FILE_NAME = "report.html"
_MOST_DRAWN = 6  # curves in one figure
_LEGEND_LETTERS = 46  # of a curve's name; a longer one would cover the curves
_MOST_NAMED = 8  # values of a fact
_CAPTION = (
    "Means over seeds, with 95 % Student t intervals from three seeds on; the intervals are not adjusted for their "
    "number. If an arm diverged or did not reach the target, the mean is over the other runs, and their number is "
    "given. The difference is candidate − reference, taken within each run; below zero is better."
)


def read_arguments(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the folders (by default outputs/) and the file of ``output=`` (None if it is not given).

    An argument that exists on disk, or matches something there, is a folder even if its name has an equals sign.

    Raises: UserError for another key, or an empty file name.
    """
    folders, output = [], None
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or "/" in key or os.path.exists(argument) or glob.glob(argument):
            folders.append(argument)
        elif key != "output":
            raise UserError(unknown_key(key, ["output"]))
        elif not value:
            raise UserError("output=: valid: the name of a file, such as output=report.html")
        else:
            output = os.path.expanduser(value)
    return folders or ["outputs"], output


def report_path(folders: Sequence[str], output: str | None) -> Path:
    """Return the path of the page: ``output``; else in the one folder that was given; else in outputs/, or here."""
    if output is not None:
        return Path(output)
    if len(folders) == 1 and os.path.isdir(folders[0]):
        return Path(folders[0]) / FILE_NAME
    return Path("outputs") / FILE_NAME if Path("outputs").is_dir() else Path(FILE_NAME)


def write_run_report(path: Path, folders: Sequence[str], runs: Sequence[RunSummary]) -> None:
    """Write the page of the runs.

    Args:
        path: of the page; its folder must exist.
        folders: as the user gave them, for the title.
        runs: broken ones are listed too.

    Raises: UserError if it cannot be written.
    """
    # The page may be moved to another machine, on which absolute paths mean nothing.
    names = _listed(Path(folder).name if Path(folder).is_absolute() else folder for folder in folders)
    title = f"Run {names}" if len(runs) == 1 else f"Runs of {names}"
    write_report(path, title, [run_result(runs)], {}, known=runs)


def run_result(runs: Sequence[RunSummary]) -> StudyResult:
    """Return a table and curves for each data set (they are never pooled), and a table of every run."""
    groups, left_out = group_runs(runs)
    sets = by_data(groups)
    facts = {
        "runs": f"{len(runs)}, of which {sum(len(group.runs) for group in groups)} are in the tables",
        "kinds": str(len(groups)),
        "seeds" if len({run.seed for run in runs}) > 1 else "seed": _listed(run.seed for run in runs),
        "data": _listed(run.data.name for run in runs if run.data),
        "steps": _listed(run.planned_steps for run in runs),
        "device": _listed(run.device for run in runs),
    }
    if len(sets) > 1:
        facts["data sets"] = f"{len(sets)}: their losses do not compare, and are not pooled"
    pictures = [found for number, groups in enumerate(sets) if (found := _curves(groups, number)) is not None]
    return StudyResult(
        name="runs",
        budget="",
        title="Results",
        facts={name: fact for name, fact in facts.items() if fact},
        tables=(*(_table(groups, number) for number, groups in enumerate(sets)), _every_run(runs)),
        pictures=tuple(pictures),
        missing=tuple(left_out),
    )


def _table(groups: list[Group], number: int) -> Table:
    """The table of groups on the same data: a row for each arm of each group."""
    quantities = [quantity for quantity in known_quantities(groups) if quantity.heading is not None]
    unit = groups[0].runs[0].unit
    bigram = ("below the bigram model",) if unit == "token" else ()
    compares = any(paired_differences(FINAL_LOSS, group) for group in groups)
    headings = ["runs that are alike", "arm", "n"]
    for quantity in quantities:
        headings.append(quantity.title_in(unit))
        if quantity is FINAL_LOSS and compares:
            headings.append(f"difference, nats/{unit}")
    rows, runs = [], []
    for group in groups:
        for name in group.arm_names:
            below = (below_bigram(group, name),) if bigram else ()
            status = arm_status(group, name).replace("\n", ", ")
            rows.append((*_row(group, name, quantities, compares), *below, status))
            runs.append(tuple(run.folder for run in group.runs))
    data = groups[0].data
    return Table(
        name=f"runs_{number}",
        title=data.name if data else "unknown data",
        caption="\n".join([*notes(groups), _CAPTION]),
        headings=(*headings, *bigram, "status"),
        rows=tuple(rows),
        runs=tuple(runs),
    )


def _row(group: Group, name: str, quantities: Sequence[Quantity], compares: bool) -> list[Cell]:
    cells: list[Cell] = [group.label, arm_label(group, name), len(group.runs)]
    for quantity in quantities:
        cells.append(_cell(quantity, group, name))
        if quantity is FINAL_LOSS and compares:
            differences = paired_differences(quantity, group) if name == group.candidate else []
            cells.append(_estimate(differences) if differences else None)
    return cells


def _cell(quantity: Quantity, group: Group, name: str) -> Cell:
    arms = group.arms(name)
    scale = 2**30 if quantity.unit == "bytes" else 1
    values = [value / scale for value in counted_values(quantity, group, name)]
    if not values:
        missing = quantity.missing(*arms[0])
        return None if missing == NOTHING else missing
    if len(values) < len(arms):
        # Readers would take an interval of the remaining runs for one of all runs.
        return f"{number_text(mean(values))} ({len(values)} of {len(arms)})"
    return _estimate(values)


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate.of_mean(values) if len(values) >= LEAST_SEEDS else Estimate(mean(values))


def _every_run(runs: Sequence[RunSummary]) -> Table:
    """A row for each run, complete or not."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        candidate = run.arm(run.candidate)
        steps = max((arm.last_step for arm in run.arms if arm.last_step is not None), default=None)
        rows.append(
            (
                run.folder.name,
                run.label or None,
                run.data.name if run.data else None,
                run.seed,
                steps,
                candidate.final_loss if candidate else None,
                run.status.replace("_", " ") + "".join(f", {arm.name} LEAKY" for arm in run.arms if arm.leaky),
            )
        )
    units = " or ".join(dict.fromkeys(f"nats/{run.unit}" for run in runs if run.problem is None)) or "nats"
    headings = ("run", "what", "data", "seed", "steps", f"candidate's last validation loss, {units}", "status")
    folders = tuple((run.folder,) for run in runs)
    return Table("every_run", "Every run", "", headings, tuple(rows), folders)


def _curves(groups: Sequence[Group], number: int) -> Picture | None:
    """Validation losses with bands over seeds, of the arms with the lowest final losses."""
    treatments = sorted(treatments_of(groups), key=_final)
    curves = ((_name(treatment), band(treatment, "validation/loss")) for treatment in treatments[:_MOST_DRAWN])
    drawn = [(name, curve) for name, curve in curves if curve is not None]
    if not drawn:
        return None
    in_full, names = "", [name for name, _ in drawn]
    if any(len(name) > _LEGEND_LETTERS for name in names):
        # The cut part of a name may be all that tells it from another, so the caption has the full names.
        in_full = " " + "; ".join(f"{number}: {name}" for number, name in enumerate(names, 1)) + "."
        names = [f"{number}: {name[:_LEGEND_LETTERS]}" for number, name in enumerate(names, 1)]
    lines = [
        Line(name, curve.steps, curve.mean, curve.low, curve.high)
        for name, (_, curve) in zip(names, drawn, strict=True)
    ]
    known = {} if (data := groups[0].data) is None else data.levels
    levels = {name: level for name, level in known.items() if name in ("bigram model", "chance")}
    few = f"; the {len(drawn)} of {len(treatments)} with the least final loss" if len(drawn) < len(treatments) else ""
    name = groups[0].data.name if groups[0].data else "unknown data"
    caption = (
        f"{name}: means over seeds (their number in brackets) with 95 % t bands from three seeds on{few}.{in_full}"
    )
    unit = groups[0].runs[0].unit
    png = bands([(f"validation loss, nats/{unit}", lines, levels)])
    numbers = [
        (curve.label, int(step), float(mean), float(low), float(high))
        for _, curve in drawn
        for step, mean, low, high in zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
    ]
    return Picture(f"curves_{number}", caption, table(("runs", "step", "mean", "low", "high"), numbers), png)


def _name(treatment: Treatment) -> str:
    """The name of a curve: its label with only the last part of every key, and the number of seeds."""
    parts = (part.split("=", 1) for part in treatment.label.split(" · "))
    name = " · ".join("=".join([key.rpartition(".")[2] if value else key, *value]) for key, *value in parts)
    leaky = "LEAKY " if any(arm.leaky for _, arm in treatment.runs) else ""
    return f"{leaky}{name} ({len(treatment.runs)})"


def _final(treatment: Treatment) -> float:
    values = [arm.final_loss for _, arm in treatment.runs]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else math.inf


def _listed(values: Iterable[object]) -> str:
    """The distinct known values in the order of the runs, at most eight of them."""
    found = [str(value) for value in dict.fromkeys(values) if value not in (None, "")]
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return ", ".join(found[:_MOST_NAMED]) + more
