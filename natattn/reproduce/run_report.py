"""`natattn report` as a page: any set of runs, one table for each data set, their curves, and two runs side by side."""

import glob
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from natattn.analysis.bands import Band, band
from natattn.analysis.groups import Group, group_runs
from natattn.analysis.pictures import run_figures
from natattn.analysis.quantities import FINAL_LOSS, Quantity
from natattn.analysis.run_set import Treatment, treatments_of
from natattn.analysis.runs import RunSummary
from natattn.analysis.summary import (
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
from natattn.report.cells import number_text
from natattn.report.section import Picture, Table, table
from natattn.report.table import Cell, Estimate, StudyTable
from natattn.reproduce.report import write_report
from natattn.reproduce.results import StudyResult
from natattn.statistics.paired import mean

FILE_NAME = "report.html"
LEAST_FOR_AN_INTERVAL = 3  # with two runs it is 13 standard errors wide, and says nothing
MOST_DRAWN = 6  # curves in one picture
LEGEND_LETTERS = 46  # of a curve's name: more would cover the curves
MOST_NAMED = 8  # values of a fact
_GIBIBYTES = "peak memory"  # its title: a quantity that is in bytes
_CAPTION = (
    "Means over seeds with 95 % Student t intervals from three seeds on, each for itself: nothing is adjusted for how "
    "many they are. Where an arm diverged or did not reach the target the mean is of the others, with their number. "
    "The difference is candidate − reference, taken within each run; below zero is better."
)


def read_arguments(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Folders (by default outputs/) and the file that ``output=`` names, None where it is not given.

    What lies on the disk, or matches something there, is a folder even where there is an equals sign in its name.

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
    """Where the page is written: ``output``; else into the one folder that was given; else into outputs/, or here."""
    if output is not None:
        return Path(output)
    if len(folders) == 1 and os.path.isdir(folders[0]):
        return Path(folders[0]) / FILE_NAME
    return Path("outputs") / FILE_NAME if Path("outputs").is_dir() else Path(FILE_NAME)


def write_run_report(path: Path, folders: Sequence[str], runs: Sequence[RunSummary]) -> None:
    """Write the page of the runs.

    Args:
        path: of the page; its folder must be there.
        folders: as they were given, for the title.
        runs: broken ones too; they are listed.

    Raises: UserError where it cannot be written.
    """
    # Where the page may go, a path of this machine says nothing.
    names = _listed(Path(each).name if Path(each).is_absolute() else each for each in folders)
    title = f"Run {names}" if len(runs) == 1 else f"Runs of {names}"
    write_report(path, title, [run_result(runs)], {}, known=runs)


def run_result(runs: Sequence[RunSummary]) -> StudyResult:
    """What the runs say: a table for each data set, which are never pooled, curves, and a list of every run."""
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


def _table(groups: list[Group], number: int) -> StudyTable:
    """A row for each arm of each group; all groups have the same data."""
    quantities = [each for each in known_quantities(groups) if each.heading is not None]
    unit = groups[0].runs[0].unit
    bigram = ("below the bigram model",) if unit == "token" else ()
    compares = any(paired_differences(FINAL_LOSS, group) for group in groups)
    headings = ["runs that are alike", "arm", "n"]
    for quantity in quantities:
        headings.append(_heading(quantity, unit))
        if quantity is FINAL_LOSS and compares:
            headings.append(f"difference, nats/{unit}")
    rows, runs = [], []
    for group in groups:
        for name in group.arm_names:
            below = (below_bigram(group, name),) if bigram else ()
            rows.append((*_row(group, name, quantities, compares), *below, _status(group, name)))
            runs.append(tuple(run.folder for run in group.runs))
    data = groups[0].data
    return StudyTable(
        name=f"runs_{number}",
        title=data.name if data else "unknown data",
        caption="\n".join([*notes(groups), _CAPTION]),
        headings=(*headings, *bigram, "status"),
        rows=tuple(rows),
        runs=tuple(runs),
    )


def _row(group: Group, name: str, quantities: Sequence[Quantity], compares: bool) -> list[Cell]:
    leaky = any(arm.leaky for _, arm in group.arms(name))
    cells: list[Cell] = [group.label, f"{name} LEAKY" if leaky else name, len(group.runs)]
    for quantity in quantities:
        cells.append(_cell(quantity, group, name))
        if quantity is FINAL_LOSS and compares:
            differences = paired_differences(quantity, group) if name == group.candidate else []
            cells.append(_estimate(differences) if differences else None)
    return cells


def _cell(quantity: Quantity, group: Group, name: str) -> Cell:
    arms = group.arms(name)
    scale = 2**30 if quantity.title == _GIBIBYTES else 1
    values = [value / scale for value in counted_values(quantity, group, name)]
    if not values:
        missing = quantity.missing(*arms[0])
        return None if missing == "—" else missing
    if len(values) < len(arms):
        # An interval of those that are left would be read as one of all.
        return f"{number_text(mean(values))} ({len(values)} of {len(arms)})"
    return _estimate(values)


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate.of_mean(values) if len(values) >= LEAST_FOR_AN_INTERVAL else Estimate(mean(values))


def _heading(quantity: Quantity, unit: str) -> str:
    title = quantity.title.strip()
    if title == _GIBIBYTES:
        return f"{title}, GiB"
    return f"{title}, nats/{unit}" if quantity.is_loss and title != "nats/byte" else title


def _status(group: Group, name: str) -> str:
    return arm_status(group, name).replace("\n", ", ")


def _every_run(runs: Sequence[RunSummary]) -> StudyTable:
    """Complete or not: whatever can be looked at."""
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
    return StudyTable("every_run", "Every run", "", headings, tuple(rows), folders)


def _curves(groups: Sequence[Group], number: int) -> Picture | None:
    """Validation losses with bands over seeds; of many arms those that ended lowest."""
    treatments = sorted(treatments_of(groups), key=_final)
    found = [(each, curve) for each in treatments[:MOST_DRAWN] if (curve := band(each, "validation/loss")) is not None]
    if not found:
        return None
    drawn = [curve for _, curve in found]
    names = [_name(each) for each, _ in found]
    in_full = ""
    if any(len(name) > LEGEND_LETTERS for name in names):
        # What is cut may be all that tells two of them apart.
        in_full = " " + "; ".join(f"{place}: {name}" for place, name in enumerate(names, 1)) + "."
        names = [f"{place}: {name[:LEGEND_LETTERS]}" for place, name in enumerate(names, 1)]
    lines = [
        run_figures.Line(name, own.steps, own.mean, own.low, own.high) for name, own in zip(names, drawn, strict=True)
    ]
    known = {} if (data := groups[0].data) is None else data.levels
    levels = {name: level for name, level in known.items() if name in ("bigram model", "chance")}
    few = f"; the {len(drawn)} of {len(treatments)} with the least final loss" if len(drawn) < len(treatments) else ""
    name = groups[0].data.name if groups[0].data else "unknown data"
    caption = (
        f"{name}: means over seeds (their number in brackets) with 95 % t bands from three seeds on{few}.{in_full}"
    )
    unit = groups[0].runs[0].unit
    png = run_figures.bands([(f"validation loss, nats/{unit}", lines, levels)])
    return Picture(f"curves_{number}", caption, _numbers(drawn), png)


def _name(treatment: Treatment) -> str:
    """Of a curve: what tells it from the others, of every key only the last part, and how many seeds it has."""
    parts = (part.split("=", 1) for part in treatment.label.split(" · "))
    name = " · ".join("=".join([key.rpartition(".")[2] if value else key, *value]) for key, *value in parts)
    leaky = "LEAKY " if any(arm.leaky for _, arm in treatment.runs) else ""
    return f"{leaky}{name} ({len(treatment.runs)})"


def _numbers(bands: Sequence[Band]) -> Table:
    rows = [
        (found.label, int(step), float(mean), float(low), float(high))
        for found in bands
        for step, mean, low, high in zip(found.steps, found.mean, found.low, found.high, strict=True)
    ]
    return table(("runs", "step", "mean", "low", "high"), rows)


def _final(treatment: Treatment) -> float:
    values = [arm.final_loss for _, arm in treatment.runs]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else math.inf


def _listed(values: Iterable[object]) -> str:
    """The different ones that are known, in the order of the runs; of many the first few."""
    found = [str(value) for value in dict.fromkeys(values) if value not in (None, "")]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more
