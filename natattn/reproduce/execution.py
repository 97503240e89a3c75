"""Jobs on Hydra's launchers: in this process, on several (joblib), on a Ray cluster or on Slurm.

What is complete is skipped by whoever asks; what broke off is resumed here; a job that fails says so when it does and
does not stop the others. An interruption ends the study, and the next start goes on.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from natattn.config.compose import plain_values, quote_paths
from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.reproduce.bundles import bundled, overrides_of
from natattn.reproduce.done import ENDED
from natattn.reproduce.jobs import Job
from natattn.storage.atomic import CONFIG_NAME, conf_folder
from natattn.training.run_folder import CONFIG, RunIsBusyError, announce, check_contained, read_config, read_run
from natattn.training.settings import run_settings
from natattn.training.signals import note, raise_requested, requested

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from natattn.training.settings import RunSettings

_PARENT = os.getppid()  # of this process, when it began
LOG = "log.txt"  # of a run folder: what the run would have shown
REFRESH_SECONDS = 0.5
BUSY_SECONDS = 2.0
SILENT_LAUNCHER = ("hydra/job_logging=none", "hydra/hydra_logging=none")


@dataclass(frozen=True)
class TrainJob:
    """What a launcher calls, here or on another machine; made of what can be pickled.

    Attributes:
        labels: {name of the run folder: the job in words}.
        members: {name of the run folder: those of all the runs that are made with it}.
        started_by: process that launches.
    """

    labels: Mapping[str, str]
    members: Mapping[str, Sequence[str]]
    started_by: int

    def __call__(self, composed: "DictConfig") -> str | None:
        """Train or resume the run of one composed configuration; None, or why it failed."""
        from hydra.core.hydra_config import HydraConfig

        if os.getpid() != self.started_by and os.getppid() != _PARENT:
            os._exit(1)  # a worker whose study was killed: nobody waits for what it would do
        folder = Path(HydraConfig.get().runtime.output_dir)
        with contextlib.suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
        label = self.labels.get(folder.name, folder.name)
        failure = None
        try:
            folders = [folder.with_name(name) for name in self.members[folder.name]]
            while not _train(run_settings(plain_values(composed)), folders):
                time.sleep(BUSY_SECONDS)  # another study makes the same run: it is ours too
            if requested() is not None:
                raise_requested()  # it came when the run had ended
        except UserError as error:
            failure = str(error)
        except Exception as error:
            with (folder / LOG).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            failure = f"{type(error).__name__}: {first_line(error)} (see {folder / LOG})"
        if failure is not None:
            failure = f"{label}: {failure}"
            announce(f"natattn: failed: {failure}")
        return failure


def launch(
    jobs: Mapping[str, Job], folder: Path, launcher: Sequence[str], *, seeds_together: bool = False
) -> list[str]:
    """Run jobs, and say in a line each which failed.

    Args:
        jobs: {what it is, in words: the job}.
        folder: holds a run folder for each job, named by its key.
        launcher: Hydra's overrides, such as hydra/launcher=joblib hydra.launcher.n_jobs=4; none for this process.
        seeds_together: train those that differ in their seed alone as one computation, where that is faster.
    Raises: UserError for a launcher that is not there, or overrides that it does not know.
    """
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode
    from omegaconf.errors import OmegaConfBaseException

    labels = {job.key: name for name, job in jobs.items()}
    bundles = bundled(jobs.values(), folder) if seeds_together else [(job,) for job in jobs.values()]
    members = {bundle[0].key: [job.key for job in bundle] for bundle in bundles}
    labels |= {b[0].key: f"{labels[b[0].key]} to {len(b) - 1} seeds later" for b in bundles if len(b) > 1}
    with _hydra() as hydra, _ended_by_sigterm(), _progress(folder, list(labels)):
        from hydra._internal.callbacks import Callbacks

        overrides = [*launcher, f"hydra.sweep.dir='{folder.resolve()}'", *SILENT_LAUNCHER]
        try:
            composed = hydra.compose_config(CONFIG_NAME, overrides, run_mode=RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(composed))
            plugin = Plugins.instance().instantiate_launcher(context, TrainJob(labels, members, os.getpid()), composed)
        except (HydraException, OmegaConfBaseException, ImportError) as error:
            raise UserError(f"{' '.join(launcher)}: {first_line(error)}") from error
        # Quoted: a key such as 12e4567890123456 would be read as a number.
        batch = [[*quote_paths(overrides_of(bundle)), f"hydra.sweep.subdir='{bundle[0].key}'"] for bundle in bundles]
        try:
            returned = plugin.launch(batch, initial_job_idx=0)
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be written to: {error.strerror or error}") from error
        except Exception as error:  # the launcher's own, such as of a worker that was killed: other jobs may be done
            why = f"the launcher broke off: {type(error).__name__}: {first_line(error)}"
            announce(f"natattn: failed: {why}")
            return [f"{labels[b[0].key]}: {why}" for b in bundles if not _has_ended(folder / b[0].key)]
    return _failures(bundles, returned, labels)


def _failures(bundles: Sequence[Sequence[Job]], returned: Sequence[Any], labels: Mapping[str, str]) -> list[str]:
    """A line for each job that failed, by what the launcher returned of it."""
    failures = []
    for bundle, result in zip(bundles, returned, strict=True):
        try:
            failure = result.return_value
        except Exception as error:  # raised by the launcher around the job, on whatever machine
            failure = f"{labels[bundle[0].key]}: {first_line(error)}"
            announce(f"natattn: failed: {failure}")
        failures += [failure] if failure is not None else []
    return failures


def _has_ended(folder: Path) -> bool:
    """Whether a folder's run has, whoever made it."""
    return read_run(folder).get("status") in ENDED


def _train(settings: "RunSettings", folders: Sequence[Path]) -> bool:
    """The run of each seed in its folder, together where all begin, else one after the other.

    Returns: False where another process makes one of them.
    Raises: KeyboardInterrupt, or SystemExit after SIGTERM, where one was interrupted and has saved where it stands.
    """
    from natattn.stacked.replicas import train_in_folders
    from natattn.training.train import train

    runs = settings.per_seed()
    if len(runs) > 1 and any((folder / CONFIG).exists() for folder in folders):
        made = [_train(run, [folder]) for run, folder in zip(runs, folders, strict=True)]
        return all(made)
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
def _hydra() -> Iterator[Any]:
    """Hydra, initialised on our configuration."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=CONFIG_NAME):
        yield GlobalHydra.instance().hydra


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the launcher as an exception does, so that it takes its workers with it."""

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
    """A bar that counts the runs that have ended, whoever makes them; a line for each tenth where nobody watches."""
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stopped, console = threading.Event(), Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("runs", total=len(keys))
        watcher = threading.Thread(target=_watch, args=(progress, task, folder, keys, stopped), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()


def _watch(progress: Progress, task: TaskID, folder: Path, keys: Sequence[str], stopped: threading.Event) -> None:
    waiting, started, said = set(keys), time.monotonic(), 0
    while True:
        last = stopped.wait(REFRESH_SECONDS)
        waiting -= {key for key in waiting if _has_ended(folder / key)}
        done = len(keys) - len(waiting)
        progress.update(task, completed=done)
        if not progress.console.is_terminal and done * 10 // max(1, len(keys)) > said:
            said = done * 10 // len(keys)
            print(f"{done} of {len(keys)} runs, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if last:
            return
