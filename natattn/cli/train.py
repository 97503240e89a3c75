"""`natattn train`: parse the arguments, and train, resume or sweep. Help and completion import nothing heavy.

Hydra's own main is only used to print configurations and to launch sweeps elsewhere (``hydra/launcher=...``).
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, NoReturn

from natattn.cli.help import TRAIN_HELP
from natattn.cli.torchrun import run_on_all_ranks, started_by_torchrun
from natattn.config.compose import (
    command_defaults,
    compose,
    defaults,
    description,
    folder_of,
    parse,
    plain_values,
    quote_paths,
    refuse_secrets_in_folders,
    sweep_jobs,
    train_groups,
)
from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.storage.atomic import CONFIG_NAME, conf_folder

if TYPE_CHECKING:
    from argparse import Namespace

    from omegaconf import DictConfig


def train(arguments: list[str]) -> int:
    """Train the run, or the runs of a sweep, that the arguments describe; return the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(train_help(), end="")
        return 0
    options = _parse_flags(arguments)
    if options.shell_completion:
        # Hydra completes what follows `natattn train`, as if that were one word.
        line = os.environ.get("COMP_LINE", "")
        if line and "train" not in line.split()[1:2]:
            return 0
        os.environ["COMP_LINE"] = line.replace(" train", "", 1)
        return hydra_main(arguments, lambda _: None)
    overrides = quote_paths(options.overrides)
    refuse_secrets_in_folders(overrides)
    flags = [argument for argument in arguments if argument not in options.overrides]
    from natattn.cli.run import resume, run, run_or_restart, sweep
    from natattn.training.settings import compose_run, run_settings

    if options.cfg or options.info or options.hydra_help:
        if options.cfg == "job":
            compose_run(overrides)
        return hydra_main([*flags, *overrides], lambda _: None)

    if (resumed := _resumed_folder(overrides, options.multirun)) is not None:
        if started_by_torchrun():
            return run_on_all_ranks(lambda ranks, _: resume(resumed, overrides, ranks))
        return resume(resumed, overrides)
    jobs = sweep_jobs(overrides)
    if options.multirun:
        if started_by_torchrun():
            raise UserError("-m: torchrun's processes train one run. Start torchrun once for each job of the sweep.")
        return sweep(jobs, overrides, flags)
    if len(jobs) != 1:
        raise UserError("several values for one key: add -m to run a sweep, or quote the value")
    composed = compose(jobs[0], with_hydra=True)
    settings, folder = run_settings(plain_values(composed)), folder_of(composed)
    if started_by_torchrun():
        if settings.seeds is not None:
            raise UserError(f"seeds={settings.seeds}: one process trains stacked seeds. Start it without torchrun.")
        return run_on_all_ranks(lambda ranks, store: run_or_restart(settings, folder, ranks, store))
    return run(settings, folder)


def train_help() -> str:
    """Return the help text: every group with its options, each described by the first line of its file."""
    chosen = defaults()
    lines = [TRAIN_HELP]
    for group, options in train_groups().items():
        lines.append(f"  {group}\n")
        width = max(14, *map(len, options))
        for option in options:
            star = "*" if chosen.get(group) == option else " "
            lines.append(f"   {star} {option:<{width}} {description(group, option)}\n")
    lines.append("\nother keys with their defaults (natattn train --cfg job prints all):\n\n")
    return "".join(lines) + indent(command_defaults(CONFIG_NAME), "  ")


def _parse_flags(arguments: list[str]) -> "Namespace":
    """Parse Hydra's flags. Raises: UserError for flags that are not supported."""
    from hydra._internal.utils import get_args_parser  # Hydra 1.3.4 has no public parser of its flags

    def refuse(message: str) -> NoReturn:
        for argument, following in zip(arguments, [*arguments[1:], "VALUE"], strict=True):
            key, equals, value = argument.removeprefix("--").partition("=")
            if argument.startswith("--") and key in message and key in train_groups():
                raise UserError(f"{argument}: not an option. Use {key}={value if equals else following}.")
        raise UserError(f"{message}. Use key=value, -m, --cfg job, --info or --help.")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    if options.experimental_rerun:
        raise UserError("--experimental-rerun: not supported, because it unpickles a file. Use resume=FOLDER.")
    if options.shell_completion:
        return options
    if options.config_name or options.config_path or options.config_dir:
        raise UserError("--config-name, --config-path, --config-dir: not supported. Use experiment=NAME or key=value.")
    if (options.package or options.resolve) and not options.cfg:
        raise UserError("--package, --resolve: only valid with --cfg job")
    return options


def _resumed_folder(overrides: Sequence[str], multirun: bool) -> str | None:
    """Return the value of ``resume=``. Raises: UserError in a sweep."""
    given = [override for override in parse(overrides) if override.key_or_group == "resume"]
    if given and (multirun or given[-1].is_sweep_override()):
        raise UserError("resume: cannot be swept. Resume each run of a sweep by itself.")
    return str(given[-1].value()) if given and given[-1].value() is not None else None


class FailedJobError(Exception):
    """Carries the exit code of a job from the process of a launcher."""


def hydra_main(arguments: list[str], task: Callable[["DictConfig"], object]) -> int:
    """Run Hydra's main function with these arguments."""
    import hydra
    from hydra.errors import HydraException

    previous, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # --info changes them
    sys.argv = ["natattn", *arguments]
    try:
        hydra.main(config_path=str(conf_folder()), config_name=CONFIG_NAME, version_base="1.3")(task)()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except FailedJobError as error:
        return int(error.args[0])
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
