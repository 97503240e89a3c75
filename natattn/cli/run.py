"""Training, resuming and showing one run."""

import contextlib
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from natattn.cli.exit_codes import line_of
from natattn.errors import TerminatedError, UserError
from natattn.storage.redaction import one_line

if TYPE_CHECKING:
    from natattn.distributed.ranks import Ranks
    from natattn.training.settings import RunSettings


def run(settings: "RunSettings", folder: Path, group: str | None, ranks: "Ranks | None" = None) -> int:
    """Train a run, print its result, and return the exit code."""
    from natattn.stacked.replicas import train_replicas
    from natattn.training.resource_errors import explain_failure, resume_hint
    from natattn.training.train import train

    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    resumed = shlex.quote(str(folder)) + ("/seedN for each of its seeds N" if settings.seeds is not None else "")
    try:
        with explain_failure(settings, folder, resumed):
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


def _show(settings: "RunSettings", folder: Path) -> None:
    """The table of a run, or of the runs of several seeds, and their curves."""
    from natattn.analysis.pictures.run_curves import plot_curves
    from natattn.analysis.summary import print_report

    several = settings.seeds is not None
    pictures = [plot_curves(folder / f"seed{each.seed}" if several else folder) for each in settings.per_seed()]
    print_report([str(folder)], stream=sys.stdout)
    for picture in pictures:
        print(one_line(f"curves: {picture}"))
