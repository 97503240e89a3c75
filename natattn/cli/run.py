"""Training, resuming and sweeping, from composed settings to an exit code."""

import contextlib
import gc
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natattn.analysis.run_curves import CURVES, plot_curves
from natattn.analysis.summary import print_report
from natattn.cli.exit_codes import error_line, run_guarded
from natattn.cli.train import FailedJobError, hydra_main
from natattn.config.compose import compose, folder_of, is_launched_here, parse, plain_values, quote_paths, validated
from natattn.errors import TerminatedError, UserError
from natattn.stacked.replicas import train_replicas
from natattn.storage.atomic import remove_unfinished
from natattn.storage.redaction import one_line
from natattn.training.guards import check_ranks
from natattn.training.resource_errors import explain_failure, resume_hint
from natattn.training.run_folder import CONFIG, RunLock, check_contained, covers, flatten, read_config, read_run
from natattn.training.settings import RunSettings, changeable, compose_run, run_settings
from natattn.training.signals import requested
from natattn.training.train import train

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from natattn.cli.torchrun import LauncherStore
    from natattn.distributed.ranks import Ranks


def run(settings: RunSettings, folder: Path, *, group: str | None = None, ranks: "Ranks | None" = None) -> int:
    """Train a run, print its result, and return the exit code. A new folder in which nothing was written is removed."""

    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    resumed = shlex.quote(str(folder)) + ("/seedN for each of its seeds N" if settings.seeds is not None else "")
    is_first = ranks is None or ranks.is_first
    with _remove_if_empty(folder, is_first), explain_failure(settings, folder, resumed):
        try:
            if settings.seeds is not None:
                result = train_replicas(settings, folder, group=group)
            else:
                result = train(settings, folder, group=group, ranks=ranks)
        except KeyboardInterrupt as error:
            if is_first:
                print(error_line(f"interrupted; {resume_hint(folder, resumed)}"), file=sys.stderr)
            return 128 + (signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT)
        if not is_first:
            return 1 if result.outcome == "diverged" else 128 + result.signal if result.signal else 0
        if result.outcome == "interrupted":
            print(error_line(f"interrupted; resume with: natattn train resume={resumed}"), file=sys.stderr)
            return 128 + (result.signal or signal.SIGINT)
        if result.outcome == "time_limit":
            limit = f"stopped by train.max_seconds={settings.train.max_seconds:g}"
            command = f"natattn train resume={resumed} train.max_seconds=MORE"
            print(error_line(f"{limit}; resume with: {command}"), file=sys.stderr)
        stacked = settings.seeds is not None
        pictures = [plot_curves(folder / f"seed{each.seed}" if stacked else folder) for each in settings.per_seed()]
        print_report([str(folder)], stream=sys.stdout)
        for picture in pictures:
            print(one_line(f"curves: {picture}"))
    return 1 if result.outcome == "diverged" else 0


def resume(path: str, overrides: Sequence[str], ranks: "Ranks | None" = None) -> int:
    """Resume a run with its own configuration, and return the exit code."""
    folder = Path(path)
    settings = resumed_settings(read_config(folder), overrides)
    record = read_run(folder)
    steps = record.get("steps")
    if record.get("status") in ("finished", "diverged") and type(steps) is int and settings.train.steps <= steps:
        if ranks is None or ranks.is_first:
            _draw_missing_curves(folder)
            print(error_line(f"{folder} is {record['status']} ({steps} steps); nothing to do"))
        # After a restart by torchrun, a diverged run is still a failure.
        return 1 if ranks is not None and record["status"] == "diverged" else 0
    return run(settings, folder, ranks=ranks)


def resumed_settings(saved: dict[str, Any], overrides: Sequence[str]) -> RunSettings:
    """Return the settings of a saved configuration, changed by overrides.

    Raises: UserError for an override of a key that must not change when a run is resumed.
    """
    before = validated(saved, RunSettings)
    allowed = changeable(before)
    # Only the changed settings are checked: what is overridden may be impossible on this machine.
    composed, content = (each.model_dump(mode="json") for each in (compose_run(overrides), before))
    requested_values, own_values = flatten(composed), flatten(content)
    named = {override.key_or_group for override in parse(overrides)}
    if "experiment" in named:
        named |= {key for key in requested_values if requested_values[key] != own_values.get(key)}
    changed: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for key in sorted(requested_values.keys() | own_values.keys()):
        value, own = requested_values.get(key), own_values.get(key)
        if not covers(frozenset(named), key) or value == own:
            continue
        if not covers(allowed, key):
            valid = ", ".join(sorted(allowed - {"resume"}))
            raise UserError(f"{key}={value}: the run has {key}={own}. Resuming may only change {valid}.")
        section, _, rest = key.partition(".")
        if rest:
            changed[section][rest] = value
        else:
            changed[section] = value
    return run_settings(changed | {section: composed[section] for section in named & allowed & composed.keys()})


def sweep(jobs: list[list[str]], overrides: list[str], flags: list[str]) -> int:
    """Train every job of a sweep; a job that fails does not stop the others. Return the largest exit code."""
    if not jobs:
        raise UserError("-m: a key has no value to sweep over, so there is no job")
    swept = {override.key_or_group for override in parse(overrides) if override.is_sweep_override()}
    runs: list[tuple[RunSettings, Path]] = []
    for index, job in enumerate(jobs):  # all are checked before the first is trained
        composed = compose(job, with_hydra=True)
        settings = run_settings(plain_values(composed))
        if settings.seeds is not None and "seed" in swept:
            raise UserError(f"seeds={settings.seeds}: the sweep is over seed already. Give one of them.")
        if not is_launched_here(composed):
            runs.clear()
            continue
        runs.append((settings, folder_of(composed, job=index)))
    if not runs:
        return hydra_main([*flags, *overrides], _run_launched)
    group = folder_of(composed, job=None).name
    codes = []
    for settings, folder in runs:
        try:
            codes.append(run_guarded(run, settings, folder, group=group))
        except Exception:
            traceback.print_exc()
            codes.append(1)
        gc.collect()  # models, probes and figures are in reference cycles
        if (number := requested()) is not None:
            print(error_line("interrupted; the sweep ends here"), file=sys.stderr, flush=True)
            return 128 + number
    return max(codes)


def _run_launched(composed: "DictConfig") -> None:
    """Train a job of a sweep in the process in which Hydra's launcher has started it."""
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    folder, group = Path(settings.runtime.output_dir), Path(settings.sweep.dir).name
    code = run_guarded(lambda: run(run_settings(plain_values(composed)), folder, group=group))
    if code:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Hydra made it; it is empty if nothing was trained
        raise FailedJobError(code)


def run_or_restart(settings: RunSettings, folder: Path, ranks: "Ranks", store: "LauncherStore") -> int:
    """Train a run on all ranks, in the folder of the first; if torchrun has restarted the ranks, resume it."""

    check_ranks(settings, ranks)
    begun = ranks.from_first(store.saved_folder() if ranks.is_first else None)
    if begun is not None and (Path(begun) / CONFIG).exists():
        return resume(begun, quote_paths([f"resume={begun}"]), ranks)
    folder = Path(ranks.from_first(str(folder)))
    store.save_folder(str(folder))
    return run(settings, folder, ranks=ranks)


@contextlib.contextmanager
def _remove_if_empty(folder: Path, is_first: bool) -> Iterator[None]:
    """Remove the folder and its parents at the end of the block, if the block created them and they are empty."""
    created = [path for path in (folder, *folder.parents) if is_first and not os.path.lexists(path)]
    try:
        yield
    finally:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


def _draw_missing_curves(folder: Path) -> None:
    """Plot the curves of a finished run that was killed while they were plotted."""

    if not (folder / CURVES).exists():
        with contextlib.suppress(UserError):  # the folder may be read-only
            check_contained(folder)
            with RunLock(folder):
                remove_unfinished(folder)
                plot_curves(folder)
