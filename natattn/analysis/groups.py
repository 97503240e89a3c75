"""Runs that are repetitions of one another: equal in everything but the seed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from natattn.analysis.data_facts import DataFacts
from natattn.analysis.runs import ArmSummary, RunSummary
from natattn.training.run_folder import ADDED_LATER, flatten

# Keys of a config that do not change what is compared: runs that differ in them alone are repetitions.
_NOT_COMPARED = frozenset(
    ("seed", "tracker", "resume", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")
)
# A run that was stopped in the middle would be compared at another step than the others.
_COMPLETE = ("finished", "time_limit")
_MOST_KEYS_NAMED = 3


@dataclass(frozen=True)
class Group:
    """Complete runs of one experiment on the same data, one for each seed; arms by name, the reference first."""

    label: str
    runs: tuple[RunSummary, ...]

    @property
    def arm_names(self) -> list[str]:
        """Return the arms of the group, the reference first."""
        return [arm.name for arm in self.runs[0].arms]

    @property
    def reference(self) -> str | None:
        """Return the arm that the others are compared with, or None."""
        return self.runs[0].reference

    @property
    def candidate(self) -> str | None:
        """The arm that is compared with the reference."""
        return self.runs[0].candidate

    @property
    def data(self) -> DataFacts | None:
        """Return the data that all runs were trained on."""
        return self.runs[0].data

    def arms(self, name: str) -> list[tuple[RunSummary, ArmSummary]]:
        """The arm of that name in every run."""
        return [(run, arm) for run in self.runs for arm in run.arms if arm.name == name]


def group_runs(runs: Iterable[RunSummary]) -> tuple[list[Group], list[str]]:
    """Groups the runs, and says in one line each which were left out and why.

    Runs with other data are never in one group. Of several runs with the same seed the last complete one counts.
    """
    found: dict[tuple[str, ...], dict[int | None, RunSummary]] = {}
    left_out = []
    for run in runs:
        if run.problem is not None:
            left_out.append(f"{run.folder}: broken: {run.problem}")
        elif run.status not in _COMPLETE:
            left_out.append(f"{run.folder}: {run.status}{_progress(run)}: not counted")
        else:
            seeds = found.setdefault(_identity(run), {})
            if (before := seeds.get(run.seed)) is not None:
                left_out.append(f"{before.folder}: repeated as {run.folder} with the same seed: not counted")
            seeds[run.seed] = run
    members = [tuple(seeds.values()) for seeds in found.values()]
    labels = _labels([runs[0] for runs in members])
    return [Group(label, runs) for label, runs in zip(labels, members, strict=True)], left_out


def _progress(run: RunSummary) -> str:
    steps = [arm.last_step for arm in run.arms if arm.last_step is not None]
    return f" at step {max(steps)} of {run.planned_steps}" if steps else ""


def _identity(run: RunSummary) -> tuple[str, ...]:
    arms = json.dumps([(arm.name, arm.optimizer) for arm in run.arms])
    config = json.dumps(_compared(run), sort_keys=True, default=str)  # YAML knows dates, JSON does not
    return _data(run), arms, run.device, str(run.planned_steps), run.label, config


def _data(run: RunSummary) -> str:
    return run.data.fingerprint if run.data else ""


def _compared(run: RunSummary) -> dict[str, Any]:
    """The config as dotted keys, without what does not matter for a comparison."""
    flat = flatten(run.config or {})
    return {
        key: value
        for key, value in flat.items()
        if not {key, key.split(".")[0]} & _NOT_COMPARED and not (key in ADDED_LATER and value == ADDED_LATER[key])
    }


def _labels(runs: list[RunSummary]) -> list[str]:
    """Each run's label; where several share one, with the keys in which they differ: as few as tell them apart."""
    labels = []
    for run in runs:
        same = [_compared(other) for other in runs if other.label == run.label and _data(other) == _data(run)]
        mine = _compared(run)
        keys = [key for key in mine if any(other.get(key) != mine[key] for other in same)]
        # One key may say it all: a width, from which a learning rate and an initialisation follow.
        telling = [key for key in keys if len({str(other.get(key)) for other in same}) == len(same)]
        named = [f"{key}={mine[key]}" for key in telling[:1] or keys[:_MOST_KEYS_NAMED]]
        more = not telling and len(keys) > _MOST_KEYS_NAMED
        labels.append(" · ".join([run.label, *named, *(["…"] if more else [])]))
    return labels
