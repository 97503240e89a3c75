"""Running jobs on Hydra's launchers: in this process, on several (joblib), on a Ray cluster or on Slurm.

The caller skips what is finished; an interrupted run is resumed here. A job that fails is reported when it fails and
does not stop the others. An interruption ends the study, and the next start resumes it.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from natattn.config.compose import plain_values, quote_paths
from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.models.settings import RandomInit
from natattn.reproduce.jobs import ENDED, Job
from natattn.storage.atomic import CONFIG_NAME, conf_folder
from natattn.training.run_folder import CONFIG, RunIsBusyError, announce, check_contained, read_config, read_run
from natattn.training.settings import NoReference, compose_run, run_settings
from natattn.training.signals import note, raise_requested, requested

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from natattn.training.settings import RunSettings

_PARENT = os.getppid()  # of this process, when it began
LOG = "log.txt"  # of a run folder: what the run would have printed
REFRESH_SECONDS = 0.5
BUSY_SECONDS = 2.0
SILENT_LAUNCHER = ("hydra/job_logging=none", "hydra/hydra_logging=none")
_SEED = "seed="
# On a CPU, 8 stacked seeds take 2.7 to 6.9 times as long as one up to this width (docs/performance.md). Wider models
# and GPUs have not been measured.
WIDEST = 128
MOST_SEEDS = 8


def bundled(jobs: Iterable[Job], folder: Path) -> list[tuple[Job, ...]]:
    """Group jobs that are faster as one computation: they differ only in consecutive seeds, and none has begun.

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
        stretches: list[list[int]] = []
        for seed in sorted(by_seed):
            if stretches and seed == stretches[-1][-1] + 1 and len(stretches[-1]) < MOST_SEEDS:
                stretches[-1].append(seed)
            else:
                stretches.append([seed])
        for stretch in stretches:
            members = tuple(by_seed[seed] for seed in stretch)
            bundles += [members] if _is_faster(members) else [(member,) for member in members]
    return bundles


def _is_faster(members: tuple[Job, ...]) -> bool:
    """Return whether stacking the members has been measured to pay. Arms that are compared by time share a run."""
    if len(members) == 1:
        return False
    try:
        settings = compose_run(quote_paths(_bundle_overrides(members)))
    except UserError:
        return False
    return (
        isinstance(settings.reference, NoReference)
        and isinstance(settings.init, RandomInit)
        and settings.device.type == "cpu"
        and settings.size.n_embd is not None
        and settings.size.n_embd <= WIDEST
    )


def _bundle_overrides(members: tuple[Job, ...]) -> tuple[str, ...]:
    first = members[0].overrides  # the lowest seed
    return first if len(members) == 1 else (*first, f"seeds={len(members)}")


@dataclass(frozen=True)
class TrainJob:
    """The function that a launcher calls, here or on another machine. Its fields can be pickled.

    Attributes:
        labels: {name of the run folder: the job in words}.
        members: {name of the run folder: run folders of all runs of the same bundle}.
        started_by: id of the process that launches.
    """

    labels: Mapping[str, str]
    members: Mapping[str, Sequence[str]]
    started_by: int

    def __call__(self, composed: "DictConfig") -> str | None:
        """Train or resume the run of one composed configuration. Return None, or why it failed."""
        from hydra.core.hydra_config import HydraConfig

        if os.getpid() != self.started_by and os.getppid() != _PARENT:
            os._exit(1)  # the study that started this worker was killed: nobody waits for the result
        folder = Path(HydraConfig.get().runtime.output_dir)
        with contextlib.suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
        try:
            folders = [folder.with_name(name) for name in self.members[folder.name]]
            while not _train(run_settings(plain_values(composed)), folders):
                time.sleep(BUSY_SECONDS)  # another study makes the same run, which counts for this one too
            if requested() is not None:
                raise_requested()  # the signal came when the run had ended
            return None
        except UserError as error:
            failure = str(error)
        except Exception as error:
            with (folder / LOG).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            failure = f"{type(error).__name__}: {first_line(error)} (see {folder / LOG})"
        return _report_failure(f"{self.labels.get(folder.name, folder.name)}: {failure}")


def _report_failure(failure: str) -> str:
    announce(f"natattn: failed: {failure}")
    return failure


def launch(
    jobs: Mapping[str, Job], folder: Path, launcher: Sequence[str], *, seeds_together: bool = False
) -> list[str]:
    """Run jobs. Return one line for each that failed.

    Args:
        jobs: {the job in words: the job}.
        folder: holds a run folder for each job, named by its key.
        launcher: Hydra's overrides, such as hydra/launcher=joblib hydra.launcher.n_jobs=4; none for this process.
        seeds_together: train jobs that differ only in their seed as one computation, if that is faster.

    Raises: UserError for a launcher that is not installed, or overrides that it does not know.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode
    from omegaconf.errors import OmegaConfBaseException

    labels = {job.key: name for name, job in jobs.items()}
    bundles = bundled(jobs.values(), folder) if seeds_together else [(job,) for job in jobs.values()]
    members = {bundle[0].key: [job.key for job in bundle] for bundle in bundles}
    labels |= {b[0].key: f"{labels[b[0].key]} to {len(b) - 1} seeds later" for b in bundles if len(b) > 1}
    GlobalHydra.instance().clear()
    with (
        initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=CONFIG_NAME),
        _ended_by_sigterm(),
        _progress(folder, list(labels)),
    ):
        from hydra._internal.callbacks import Callbacks

        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        overrides = [*launcher, f"hydra.sweep.dir='{folder.resolve()}'", *SILENT_LAUNCHER]
        try:
            composed = hydra.compose_config(CONFIG_NAME, overrides, run_mode=RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(composed))
            plugin = Plugins.instance().instantiate_launcher(context, TrainJob(labels, members, os.getpid()), composed)
        except (HydraException, OmegaConfBaseException, ImportError) as error:
            raise UserError(f"{' '.join(launcher)}: {first_line(error)}") from error
        # Quoted, because a key such as 12e4567890123456 would be read as a number.
        batch = [
            [*quote_paths(_bundle_overrides(bundle)), f"hydra.sweep.subdir='{bundle[0].key}'"] for bundle in bundles
        ]
        try:
            returned = plugin.launch(batch, initial_job_idx=0)
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be written to: {error.strerror or error}") from error
        except Exception as error:  # the launcher's own, such as for a worker that was killed: other jobs may be done
            why = f"the launcher broke off: {type(error).__name__}: {first_line(error)}"
            announce(f"natattn: failed: {why}")
            return [f"{labels[b[0].key]}: {why}" for b in bundles if not _has_ended(folder / b[0].key)]
    return _failures(bundles, returned, labels)


def _failures(bundles: Sequence[Sequence[Job]], returned: Sequence[Any], labels: Mapping[str, str]) -> list[str]:
    failures = []
    for bundle, result in zip(bundles, returned, strict=True):
        try:
            failure = result.return_value
        except Exception as error:  # raised by the launcher around the job, on any machine
            failure = _report_failure(f"{labels[bundle[0].key]}: {first_line(error)}")
        failures += [failure] if failure is not None else []
    return failures


def _has_ended(folder: Path) -> bool:
    return read_run(folder).get("status") in ENDED


def _train(settings: "RunSettings", folders: Sequence[Path]) -> bool:
    """Train the run of each seed in its folder: stacked if all begin, else one after the other.

    Returns False if another process makes one of them. Raises: KeyboardInterrupt, or SystemExit after SIGTERM, if one
    was interrupted (and has saved a checkpoint).
    """
    from natattn.stacked.replicas import train_in_folders
    from natattn.training.train import train

    runs = settings.per_seed()
    if len(runs) > 1 and any((folder / CONFIG).exists() for folder in folders):
        are_made = [_train(run, [folder]) for run, folder in zip(runs, folders, strict=True)]
        return all(are_made)
    if _has_ended(folders[0]):
        return True  # another process was faster
    if (folders[0] / CONFIG).exists():
        read_config(folders[0])
        settings = settings.model_copy(update={"resume": str(folders[0])})
    folders[0].mkdir(parents=True, exist_ok=True)
    check_contained(folders[0], [LOG])
    with (folders[0] / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        try:
            result = train(settings, folders[0]) if len(runs) == 1 else train_in_folders(settings, folders)
        except RunIsBusyError:
            return False
    if result.outcome == "interrupted":
        if result.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
    for folder in folders:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return True


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the launcher ends its workers too."""

    def end(number: int, frame: FrameType | None) -> None:
        note(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _progress(folder: Path, keys: Sequence[str]) -> Iterator[None]:
    """Show how many runs have ended, in any process: as a bar, or as a line for each tenth if not on a terminal."""
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    ended, console = threading.Event(), Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("runs", total=len(keys))

        def watch() -> None:
            waiting, started, tenths = set(keys), time.monotonic(), 0
            is_last = False
            while not is_last:
                is_last = ended.wait(REFRESH_SECONDS)
                waiting -= {key for key in waiting if _has_ended(folder / key)}
                done = len(keys) - len(waiting)
                progress.update(task, completed=done)
                if not console.is_terminal and done * 10 // max(1, len(keys)) > tenths:
                    tenths = done * 10 // len(keys)
                    print(
                        f"{done} of {len(keys)} runs, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
                    )

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
