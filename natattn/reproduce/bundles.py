"""Runs of a study that differ in their seed alone, made as one computation where that is faster."""

from collections.abc import Iterable
from pathlib import Path

from natattn.config.compose import quote_paths
from natattn.errors import UserError
from natattn.models.settings import RandomInit
from natattn.reproduce.jobs import Job
from natattn.training.run_folder import CONFIG
from natattn.training.settings import NoReference, compose_run

_SEED = "seed="
# On a CPU 8 seeds together take 2.7 to 6.9 times as long as one up to this width (docs/performance.md); wider models
# have not been measured, nor has a GPU.
WIDEST = 128
MOST_SEEDS = 8


def bundled(jobs: Iterable[Job], folder: Path) -> list[tuple[Job, ...]]:
    """The jobs, those together that are faster so: their seeds follow each other, and none has begun.

    Args:
        folder: holds a run folder for each job, named by its key.
    """
    bundles: list[tuple[Job, ...]] = []
    alike: dict[tuple[str, ...], dict[int, Job]] = {}
    for job in jobs:
        seeds = [override.removeprefix(_SEED) for override in job.overrides if override.startswith(_SEED)]
        if len(seeds) == 1 and seeds[0].isdigit() and not (folder / job.key / CONFIG).exists():
            rest = tuple(override for override in job.overrides if not override.startswith(_SEED))
            alike.setdefault(rest, {})[int(seeds[0])] = job
        else:
            bundles.append((job,))
    for by_seed in alike.values():
        for stretch in _stretches(sorted(by_seed)):
            members = tuple(by_seed[seed] for seed in stretch)
            bundles += [members] if _is_faster(members) else [(member,) for member in members]
    return bundles


def overrides_of(members: tuple[Job, ...]) -> tuple[str, ...]:
    """What composes the run of all members; the first has the lowest seed."""
    first = members[0].overrides
    return first if len(members) == 1 else (*first, f"seeds={len(members)}")


def _stretches(seeds: list[int]) -> list[list[int]]:
    """Seeds in order, cut where one does not follow the last, and at the most that go together."""
    found: list[list[int]] = []
    for seed in seeds:
        if found and seed == found[-1][-1] + 1 and len(found[-1]) < MOST_SEEDS:
            found[-1].append(seed)
        else:
            found.append([seed])
    return found


def _is_faster(members: tuple[Job, ...]) -> bool:
    """Whether the members can be trained together, in the range where that has been measured to pay.

    Arms that are compared by their seconds share a run, and are left alone.
    """
    if len(members) == 1:
        return False
    try:
        settings = compose_run(quote_paths(overrides_of(members)))
    except UserError:
        return False
    width = settings.size.n_embd
    return (
        isinstance(settings.reference, NoReference)
        and isinstance(settings.init, RandomInit)
        and settings.device.type == "cpu"
        and width is not None
        and width <= WIDEST
    )
