"""Several runs at once: what was compared in them, seed by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from natattn.analysis.groups import Group, group_runs
from natattn.analysis.runs import ArmSummary, RunSummary, find_runs, summarise_run
from natattn.errors import UserError
from natattn.tracking.metrics_file import FILE_NAME as METRICS_FILE
from natattn.training.run_folder import flatten

if TYPE_CHECKING:
    from natattn.analysis.settings import AnalyzeSettings  # imports models, which tables of runs do without

MOST_NAMED = 4


@dataclass(frozen=True, eq=False)
class Treatment:
    """An arm, trained with several seeds in runs that differ in nothing else."""

    label: str
    arm: str
    group: Group

    @property
    def runs(self) -> list[tuple[RunSummary, ArmSummary]]:
        """Every run with its arm, by seed."""
        return sorted(self.group.arms(self.arm), key=lambda pair: pair[0].seed or 0)

    def setting(self, key: str) -> object:
        """A dotted key of the configuration, the same in all runs; None where it has none."""
        return flatten(self.group.runs[0].config or {}).get(key)

    @property
    def width(self) -> int | None:
        """``size.n_embd``."""
        value = self.setting("size.n_embd")
        return value if isinstance(value, int) else None


@dataclass(frozen=True, eq=False)
class RunSet:
    """Complete runs, as treatments.

    Attributes:
        name: for titles and folders.
        facts: what they are, for the top of the page.
        source: of which runs, for telling whether an analysis can go on.
        folder: where the analysis is written, for what its measures keep of single runs.
        treatments: one for every arm of every group of runs.
        baselines: of every treatment the one it is compared with; None for those that others are compared with.
    """

    name: str
    facts: dict[str, str]
    source: str
    folder: Path
    treatments: tuple[Treatment, ...]
    baselines: tuple[Treatment | None, ...]

    @property
    def unit(self) -> str:
        """Return what their losses are means over: token, image or pair; of several tasks all of these."""
        return " or ".join(dict.fromkeys(run.unit for treatment in self.treatments for run, _ in treatment.runs))


def load_runs(settings: "AnalyzeSettings") -> RunSet:
    """The runs in the folders or globs of ``settings.runs``; of each only the arm that is named, if one is.

    Baseline of a treatment is the one whose label ``settings.baseline`` is part of; by default the reference of the
    same runs, and where they have none the first treatment.

    Raises: UserError where there are none that ended, or ``arm`` or ``baseline`` is not among them.
    """
    assert settings.runs is not None
    arm, patterns = settings.arm, settings.runs
    folders = find_runs(patterns)
    groups, left_out = group_runs(summarise_run(folder) for folder in folders)
    if not groups:
        raise UserError(
            f"runs={','.join(patterns)}: none of {len(folders)} runs can be used: {'; '.join(left_out[:3])}"
        )
    treatments = tuple(treatments_of(groups, arm))
    if not treatments:
        arms = sorted({name for group in groups for name in group.arm_names})
        raise UserError(f"arm={arm}: no run has it; valid: {', '.join(arms)}")
    runs = [run for group in groups for run in group.runs]
    names = [Path(pattern).name.strip("*_-. ") or Path(pattern).resolve().parent.name for pattern in patterns]
    name = "+".join(names) if len(names) <= MOST_NAMED else f"{len(names)} folders"
    facts = {
        "runs": f"{len(runs)}, of {len(treatments)} kinds, seeds {_listed(sorted({run.seed or 0 for run in runs}))}",
        "data": _listed(sorted({f"{run.data.name} ({run.data.fingerprint[:12]})" for run in runs if run.data})),
        "steps": _listed(sorted({run.planned_steps or 0 for run in runs})),
        "device": _listed(sorted({run.device for run in runs})),
    }
    if left_out:
        facts["left out"] = f"{len(left_out)}: {'; '.join(left_out[:MOST_NAMED])}"
    # A run that was made again has the same configuration, but not the same file.
    source = ", ".join(sorted(f"{run.config_hash} {run.status} {_written(run.folder)}" for run in runs))
    folder = Path(settings.output) if settings.output is not None else Path("outputs") / f"analysis_{_safe(name)}"
    return RunSet(
        name=name, facts=facts, source=source, folder=folder, treatments=treatments,
        baselines=_baselines(treatments, settings.baseline),
    )  # fmt: skip


def pairs(treatment: Treatment, other: Treatment) -> list[tuple[tuple[RunSummary, ArmSummary], ...]]:
    """Runs of both that are paired: same seed, data and initial weights (protocol, 1)."""
    theirs = {_identity(run): (run, arm) for run, arm in other.runs}
    return [((run, arm), theirs[_identity(run)]) for run, arm in treatment.runs if _identity(run) in theirs]


def _identity(run: RunSummary) -> tuple[object, ...]:
    return run.seed, run.data.fingerprint if run.data else None, run.initial_weights_hash


def treatments_of(groups: Sequence[Group], arm: str | None = None) -> Iterable[Treatment]:
    """Every arm of every group, or only the one of that name.

    Labels are what tells them apart: parts that all groups have are left out.
    """
    common = set.intersection(*(set(group.label.split(" · ")) for group in groups)) if len(groups) > 1 else set()
    for group in groups:
        for name in group.arm_names:
            if arm not in (None, name):
                continue
            parts = [part for part in group.label.split(" · ") if part not in common] if len(groups) > 1 else []
            parts += [name] * (len(group.arm_names) > 1)
            yield Treatment(" · ".join(parts) or group.label, name, group)


def _baselines(treatments: Sequence[Treatment], wanted: str | None) -> tuple[Treatment | None, ...]:
    if wanted is not None:
        exact = [treatment for treatment in treatments if treatment.label == wanted]
        found = exact or [treatment for treatment in treatments if wanted in treatment.label]
        if len(found) != 1:
            said = "is part of several labels" if found else "is part of no label"
            labels = "; ".join(treatment.label for treatment in found or treatments)
            raise UserError(f"baseline={wanted}: {said}; there are: {labels}")
        return tuple(None if treatment is found[0] else found[0] for treatment in treatments)
    chosen: list[Treatment | None] = []
    for treatment in treatments:
        reference = next((t for t in treatments if t.group is treatment.group and t.arm == t.group.reference), None)
        first = treatments[0] if reference is None else reference
        chosen.append(None if first is treatment else first)
    return tuple(chosen)


def _listed(values: Sequence[object]) -> str:
    more = f" and {len(values) - MOST_NAMED} more" if len(values) > MOST_NAMED + 2 else ""
    return ", ".join(map(str, values[: MOST_NAMED if more else None])) + more


def _written(folder: Path) -> int:
    file = folder / METRICS_FILE
    return (file if file.exists() else folder.parent).stat().st_mtime_ns  # that of a packed run is its record


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in name)[:80] or "runs"
