"""What `natattn train` does with one run: train it, go on with it, repeat it; and show what came out."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natattn.cli.exit_codes import line_of
from natattn.config import compose as config
from natattn.errors import TerminatedError, UserError
from natattn.storage.redaction import one_line

if TYPE_CHECKING:
    from natattn.distributed.ranks import Ranks
    from natattn.training.settings import RunSettings


def run(settings: "RunSettings", folder: Path, group: str | None, ranks: "Ranks | None" = None) -> int:
    """Train, then show what came out; of a repetition also whether it agrees with the run that it repeats."""
    from natattn.stacked.replicas import train_replicas
    from natattn.training.resource_errors import explain_failure, resume_hint
    from natattn.training.train import train

    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    resumed = shlex.quote(str(folder)) + ("/seedN for each of its seeds N" if settings.seeds is not None else "")
    try:
        with explain_failure(settings, folder, resumed), _threads_as_in(settings.repeat):
            if settings.seeds is not None:
                result = train_replicas(settings, folder, group=group)
            else:
                result = train(settings, folder, group=group, ranks=ranks)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, TerminatedError) else signal.SIGINT
        if ranks is None or ranks.is_first:
            print(line_of(f"interrupted; {resume_hint(folder, resumed)}"), file=sys.stderr)
        return 128 + number
    if ranks is not None and not ranks.is_first:
        return 1 if result.outcome == "diverged" else 128 + result.signal if result.signal else 0
    if result.outcome == "interrupted":
        print(line_of(f"interrupted; go on with: natattn train resume={resumed}"), file=sys.stderr)
        return 128 + (result.signal or signal.SIGINT)
    if result.outcome == "time_limit":
        limit = f"stopped by train.max_seconds={settings.train.max_seconds:g}"
        more = f"natattn train resume={resumed} train.max_seconds=MORE"
        print(line_of(f"{limit}; go on with: {more}"), file=sys.stderr)
    with explain_failure(settings, folder, resumed):
        _show(settings, folder)
    if settings.repeat is not None:
        return _compare(settings.repeat, folder) if result.outcome != "time_limit" else 1
    return 1 if result.outcome == "diverged" else 0


def resume(path: str, overrides: list[str], ranks: "Ranks | None" = None) -> int:
    """Go on with a run under its own configuration, after checking that nothing else was asked for."""
    from natattn.cli.resume import resumed_settings
    from natattn.training.run_folder import read_config, read_run

    folder = Path(path)
    settings = resumed_settings(read_config(folder), overrides)
    facts = read_run(folder)
    steps = facts.get("steps")
    if facts.get("status") in ("finished", "diverged") and type(steps) is int and settings.train.steps <= steps:
        if ranks is None or ranks.is_first:
            _draw_missing(folder)
            print(line_of(f"{folder} is {facts['status']} ({steps} steps); nothing to do"))
        # torchrun has restarted ranks that ended with a diverged run: it is not for them to call that a success.
        return 1 if ranks is not None and facts["status"] == "diverged" else 0
    return run(settings, folder, None, ranks)


def _draw_missing(folder: Path) -> None:
    """The curves of a run that was killed while they were drawn, after all else was done."""
    from natattn.analysis.pictures.run_curves import CURVES, plot_curves
    from natattn.storage.atomic import remove_unfinished
    from natattn.training.run_folder import RunLock, check_contained

    if not (folder / CURVES).exists():
        with contextlib.suppress(UserError):  # a folder that may not be written to stays as it is
            check_contained(folder)
            with RunLock(folder):
                remove_unfinished(folder)
                plot_curves(folder)


def settings_to_repeat(path: str, overrides: list[str]) -> "RunSettings":
    """The settings that train a finished run again, on the device that it was trained on.

    Raises: UserError where the folder is no finished run's, where something else was asked for, or without the device.
    """
    from natattn.cli.resume import repeated_settings
    from natattn.training.devices import check_name
    from natattn.training.run_folder import read_config, read_run

    folder = Path(path)
    saved, facts = read_config(folder), read_run(folder)
    _check_finished(folder, facts)
    settings = repeated_settings(saved, overrides)
    named = {override.key_or_group for override in config.parse(overrides)}
    then = str(facts.get("device", "cpu"))
    if "train.device" in named or settings.device.type == then.partition(":")[0]:
        return settings
    try:
        check_name(then)
        again = settings.model_copy(update={"train": settings.train.model_copy(update={"device": then})})
        again.check()
    except UserError as error:
        raise UserError(f"repeat={path}: the run was on {then}: {error}; or another with train.device=") from None
    return again


def folder_names(settings: "RunSettings") -> list[str]:
    """Overrides under which Hydra names the folder of a run of these settings, whatever else it composes."""
    return [f"model.name={settings.model.name}", f"optim.name={settings.optim.name}", f"seed={settings.seed}"]


def _check_finished(folder: Path, facts: dict[str, Any]) -> None:
    """Raises: UserError for a run that cannot be compared with, or not yet."""
    from natattn.tracking.metrics_file import FILE_NAME, read_metrics

    status = facts.get("status")
    if status not in ("finished", "diverged"):
        more = " train.max_seconds=null" if status == "time_limit" else ""
        words = {"None": "it has no readable run.json", "time_limit": "stopped by train.max_seconds"}
        said = words.get(str(status), status)
        finish = f"natattn train resume={shlex.quote(str(folder))}{more}"
        raise UserError(f"repeat={folder}: the run is not finished ({said}); finish it first: {finish}")
    data = facts.get("data")
    if not (folder / FILE_NAME).is_file() or not isinstance(data, dict) or "fingerprint" not in data:
        raise UserError(f"repeat={folder}: its {FILE_NAME} or the data in its run.json is missing; nothing to compare")
    if not len(read_metrics(folder / FILE_NAME).step):
        raise UserError(f"repeat={folder}: its {FILE_NAME} is empty; nothing to compare")


def _show(settings: "RunSettings", folder: Path) -> None:
    """The table of a run, or of the runs of several seeds, and their curves."""
    from natattn.analysis.pictures.run_curves import plot_curves
    from natattn.analysis.summary import print_report

    several = settings.seeds is not None
    pictures = [plot_curves(folder / f"seed{each.seed}" if several else folder) for each in settings.per_seed()]
    print_report([str(folder)], stream=sys.stdout)
    for picture in pictures:
        print(one_line(f"curves: {picture}"))


def _compare(repeated: str, folder: Path) -> int:
    """Say whether a repetition agrees; 0 where it does, in its bits or within rounding."""
    from natattn.analysis.repetition import compare_runs
    from natattn.analysis.repetition_table import print_repetition

    repetition = compare_runs(Path(repeated), folder)
    print_repetition(repetition, stream=sys.stdout)
    return 0 if repetition.agrees else 1


@contextlib.contextmanager
def _threads_as_in(repeated: str | None) -> Iterator[None]:
    """Compute with the number of threads that a run had, for sums are rounded in its order."""
    import torch

    from natattn.training.environment import read_environment

    then = read_environment(Path(repeated)).get("threads") if repeated is not None else None
    own = torch.get_num_threads()
    if not isinstance(then, int) or then < 1 or then == own:
        yield
        return
    print(f"natattn: computing with {then} threads, as the run did, instead of {own}", file=sys.stderr)
    torch.set_num_threads(then)
    try:
        yield
    finally:
        torch.set_num_threads(own)
