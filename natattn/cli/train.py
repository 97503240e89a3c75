"""`natattn train`: overrides → validated jobs → Hydra → runs, by one process or by the ranks of torchrun."""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, NoReturn

from natattn.cli.exit_codes import guarded, line_of
from natattn.cli.help import TRAIN_HELP
from natattn.cli.run import resume, run
from natattn.cli.torchrun import started_by_torchrun, together
from natattn.config import compose as config
from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.storage.atomic import CONFIG_NAME, conf_folder
from natattn.training.signals import asked_to_stop

if TYPE_CHECKING:
    from argparse import Namespace

    from omegaconf import DictConfig

    from natattn.cli.torchrun import LauncherStore
    from natattn.distributed.ranks import Ranks


def train(arguments: list[str]) -> int:
    """`natattn train`: validate everything first, then hand the jobs to Hydra."""
    if "--help" in arguments or "-h" in arguments:
        print(train_help(), end="")
        return 0
    options = _parsed(arguments)
    if options.shell_completion:
        return _complete(arguments)
    overrides = config.quote_paths(options.overrides)
    config.refuse_secrets_in_folders(overrides)
    flags = [argument for argument in arguments if argument not in options.overrides]
    if options.cfg or options.info or options.hydra_help:
        if options.cfg == "job":
            config.settings_of(config.compose(overrides))
        return _hydra([*flags, *overrides], lambda _: None)

    resumed = _folder_of("resume", overrides, options.multirun)
    if resumed is not None:
        if started_by_torchrun():
            return together(lambda ranks, _: resume(resumed, overrides, ranks))
        return resume(resumed, overrides)
    jobs = config.jobs(overrides)
    if not options.multirun and len(jobs) > 1:
        raise UserError("several values for one key: add -m to run a sweep, or quote the value")
    if not jobs:
        raise UserError("-m: a key with no value to take: there is no job in this sweep")
    _check_jobs(jobs, overrides)
    if started_by_torchrun():
        if options.multirun:
            raise UserError("-m: torchrun's processes train one run together; start torchrun once for each job")
        return together(lambda ranks, store: _begin_together(jobs[0], [*flags, *overrides], ranks, store))

    return _launch([*flags, *overrides])


def _parsed(arguments: list[str]) -> "Namespace":
    """Hydra's reading of its flags. Raises: UserError for those that we do not have."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse_flag  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    if options.experimental_rerun:
        raise UserError("--experimental-rerun: not supported (it would unpickle a file); use resume=FOLDER")
    if options.shell_completion:
        return options
    if options.config_name or options.config_path or options.config_dir:
        raise UserError("--config-name, --config-path and --config-dir: not supported; use experiment=… or key=value")
    if (options.package or options.resolve) and not options.cfg:
        raise UserError("--package and --resolve: are for --cfg job")
    return options


def _folder_of(key: str, overrides: list[str], multirun: bool) -> str | None:
    """Return the run folder that ``resume=`` names.

    Raises: UserError in a sweep.
    """
    given = [override for override in config.parse(overrides) if override.key_or_group == key]
    if given and (multirun or given[-1].is_sweep_override()):
        raise UserError(f"{key}: cannot be swept; {key} each run of a sweep by itself")
    return str(given[-1].value()) if given and given[-1].value() is not None else None


def _check_jobs(jobs: list[list[str]], overrides: list[str]) -> None:
    """Raises: UserError for the first job that cannot be run."""
    swept = {override.key_or_group for override in config.parse(overrides) if override.is_sweep_override()}
    for job in jobs:
        settings = config.settings_of(config.compose(job))
        if settings.seeds is not None and "seed" in swept:
            raise UserError(f"seeds={settings.seeds}: the sweep is over seed already; give one of them")
        if settings.seeds is not None and started_by_torchrun():
            raise UserError(f"seeds={settings.seeds}: one process trains them together; run it without torchrun")


def _launch(arguments: list[str]) -> int:
    """Run the job, or the jobs of a sweep, on Hydra's launcher."""
    codes: list[int] = []
    started = time.time()

    def job(composed: "DictConfig") -> None:
        codes.append(_job(composed, started))
        if codes[-1] and not _launched_here():
            raise _FailedJobError(codes[-1])  # the only word that comes back from another process

    code = _hydra(arguments, job)
    _remove_fruitless_sweeps(started)
    return max([code, *codes])


def _begin_together(job: list[str], arguments: list[str], ranks: "Ranks", store: "LauncherStore") -> int:
    """Train by several ranks what they can train; what they cannot is refused before any of them makes a folder."""
    from natattn.training.guards import check_ranks

    check_ranks(config.settings_of(config.compose(job)), ranks)
    return _train_together(arguments, ranks, store)


def _train_together(arguments: list[str], ranks: "Ranks", store: "LauncherStore") -> int:
    """One run by several ranks; after a restart by torchrun, go on with it."""
    from natattn.training.run_folder import CONFIG

    begun = ranks.from_first(store.remembered_folder() if ranks.is_first else None)
    if begun is not None and (Path(begun) / CONFIG).exists():
        return resume(begun, config.quote_paths([f"resume={begun}"]), ranks)
    codes: list[int] = []
    started = time.time()
    own = [] if ranks.is_first else ["hydra.run.dir=."]  # the first rank's folder is everyone's
    errors: list[Exception] = []

    def job(composed: "DictConfig") -> None:
        try:
            codes.append(_job(composed, started, ranks, store))
        except Exception as error:  # Hydra would print it; it may be no more than a lost rank
            errors.append(error)

    code = _hydra([*arguments, *own], job)
    if errors:
        raise errors[0]
    return max([code, *codes])


def train_help() -> str:
    """Every group with its options and one line on each, read from the files themselves."""
    defaults = config.defaults()
    lines = [TRAIN_HELP]
    for group, options in config.train_groups().items():
        lines.append(f"  {group}\n")
        width = max(14, *map(len, options))
        for option in options:
            star = "*" if defaults.get(group) == option else " "
            lines.append(f"   {star} {option:<{width}} {config.description(group, option)}\n")
    lines.append("\nother keys with their defaults (natattn train --cfg job prints all):\n\n")
    return "".join(lines) + indent(config.own_values(CONFIG_NAME), "  ")


class _FailedJobError(Exception):
    """A job of a sweep ended with this exit code in another process."""


def _launched_here() -> bool:
    """Whether Hydra runs the jobs of a sweep in this process, one after the other."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().launcher["_target_"]).endswith("BasicLauncher")


def _refuse_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; valid: key=value, -m, --cfg job, --info, --help")


def _job(
    composed: "DictConfig",
    started: float,
    ranks: "Ranks | None" = None,
    store: "LauncherStore | None" = None,
) -> int:
    """One job that Hydra launches; its errors end the job, never the sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    group = Path(hydra_config.sweep.dir).name if sweeping else None
    is_new = folder.stat().st_ctime >= started  # Hydra made it, not the user
    if ranks is not None and store is not None:
        folder = Path(ranks.from_first(str(folder)))
        store.remember_folder(str(folder))
    try:
        stopped = sweeping and asked_to_stop() is not None  # between two jobs
        code = 0 if stopped else guarded(lambda: run(config.settings_of(composed), folder, group, ranks))
    except Exception:
        if ranks is not None:
            raise  # it may be that another rank is lost
        traceback.print_exc()
        code = 1
    if sweeping and code <= 128 and (number := asked_to_stop()) is not None:
        print(line_of("interrupted; the sweep ends here"), file=sys.stderr, flush=True)
        code = 128 + number
    if code and is_new and (ranks is None or ranks.is_first):
        with contextlib.suppress(OSError):
            folder.rmdir()  # succeeds where nothing was written to it
    if sweeping and code > 128:
        raise SystemExit(code)  # Ctrl-C ends the whole sweep, not only the job
    return code


def _hydra(arguments: list[str], task: Callable[["DictConfig"], object]) -> int:
    """Run Hydra's own main with our arguments."""
    import hydra
    from hydra.errors import HydraException

    previous = sys.argv
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # --info reconfigures them for good
    sys.argv = ["natattn", *arguments]
    try:
        hydra.main(config_path=str(conf_folder()), config_name=CONFIG_NAME, version_base="1.3")(task)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except _FailedJobError as failed:
        return int(failed.args[0])
    except HydraException as error:
        raise UserError(first_line(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be made a run folder: {error.strerror}") from error
    finally:
        sys.argv = previous
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        root.handlers[:] = handlers
        root.setLevel(level)
    return 0


def _complete(arguments: list[str]) -> int:
    """Shell completion: Hydra completes what follows `natattn train`, as if that were one word."""
    line = os.environ.get("COMP_LINE", "")
    if line and "train" not in line.split()[1:2]:
        return 0
    os.environ["COMP_LINE"] = line.replace(" train", "", 1)
    return _hydra(arguments, lambda _: None)


def _remove_fruitless_sweeps(started: float) -> None:
    """Remove what Hydra made around jobs that all failed: sweep folders without a run, and an empty outputs/."""
    outputs = Path("outputs")
    for note in outputs.glob("*/multirun.yaml"):
        if note.stat().st_ctime >= started and [path.name for path in note.parent.iterdir()] == [note.name]:
            note.unlink()
            note.parent.rmdir()
    with contextlib.suppress(OSError):
        if outputs.stat().st_ctime >= started:
            outputs.rmdir()
