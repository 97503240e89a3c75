"""The folder of a run: its configuration, its lock, and checks that its files can be written and read safely."""

import fcntl
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from natattn.errors import UserError
from natattn.storage.atomic import replacing
from natattn.storage.documents import hash_of, read_object, read_yaml
from natattn.storage.redaction import one_line, redacted
from natattn.tracking.metrics_file import FILE_NAME
from natattn.training.environment import ENVIRONMENT

CONFIG = "config.yaml"
RUN = "run.json"
LOCK = "run.lock"
WANDB = "wandb"  # has a folder for each session, in which wandb links to its own logs
# Files that a run writes into its folder, except temporary ones.
_FILES = (CONFIG, RUN, ENVIRONMENT, LOCK, FILE_NAME, "curves.png", "curves.csv", "log.txt")
OURS = (*_FILES, "checkpoints", "arms", WANDB)
_FOLDERS = re.compile(rf"checkpoints(/step-\d+|/best)?|arms(/[\w-]+(/model)?)?|{WANDB}")
# Keys that were added after runs had been published; with these values they are left out of the hash.
ADDED_LATER: dict[str, Any] = {
    "task.kind": "language",
    "size.n_inner": None,
    "train.parallel": "ddp",
    "train.activation_checkpointing": False,
    "train.deterministic": False,
    "seeds": None,
    "stabilisers.qk_norm": False,
    "stabilisers.qk_clip": None,
    "stabilisers.softcap": None,
    "optim.directions.default.of": "gradient",
    "optim.directions.default.plain_share": 0.0,
    **{
        f"{section}.{key}": None
        for section in ("optim", "reference")
        for key in ("factors", "placebo", "placebo_energy")
    },
}


class RunIsBusyError(UserError):
    """Another process is training in the run folder."""


class RunLock:
    """File lock on a run folder; the system releases it when the process dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._locked():
                os.close(self._descriptor)
        except BlockingIOError:
            os.close(self._descriptor)
            raise RunIsBusyError(f"{self._path.parent}: another process is training in this run folder") from None
        except OSError as error:
            raise UserError(f"{self._path.parent}: cannot be written to: {error.strerror}") from error
        return self

    def _locked(self) -> bool:
        """Take the lock; False if its last holder removed the file meanwhile: another process may lock a new one."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            return os.fstat(self._descriptor).st_ino == self._path.stat().st_ino
        except FileNotFoundError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def check_contained(folder: Path, names: Iterable[str] = OURS) -> None:
    """Check that no file that a run writes is behind a link out of the folder or of another kind than expected.

    Refuses files in place of folders, folders in place of files, pipes, sockets and devices. The folder itself may be a
    link.

    Raises: UserError naming the path.
    """
    for path in (path for name in names for path in _written(folder / name)):
        if path.is_symlink() and not _lies_in(path, folder):
            raise UserError(f"{path}: a link that leads out of the run folder; valid: a file or folder inside it")
        _check_kind(path, str(path.relative_to(folder)))


def _check_kind(path: Path, name: str) -> None:
    """Raises: UserError if the path, links followed, is of another kind than a run writes under that name."""
    if not os.path.lexists(path):
        return
    if _FOLDERS.fullmatch(name):
        if not path.is_dir():
            raise UserError(f"{path}: not a folder; valid: the folder that a run makes, or nothing")
    elif name in _FILES:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; valid: the file that a run writes, or nothing")
    elif path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: a pipe, a socket or a device; valid: regular files and folders")


def _written(path: Path) -> Iterator[Path]:
    """Yield all paths that may be written to: all below ``path``, but of wandb's folder only its direct children."""
    yield path
    for inner, names, files in os.walk(path):
        yield from (Path(inner, name) for name in (*names, *files))
        if path.name == WANDB:
            return


def _lies_in(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # circular links
        return False


def check_unused(folder: Path) -> None:
    """Raises: UserError if the folder holds a run."""
    if (folder / CONFIG).exists():
        raise UserError(
            f"{folder}: already holds a run; resume it with resume={shlex.quote(str(folder))}, or choose another folder"
        )


def config_hash(config: dict[str, Any], *, without: frozenset[str] = frozenset()) -> str:
    """Return the SHA-256 of a configuration as canonical JSON, without some dotted keys and all below them."""
    kept = {
        key: value
        for key, value in flatten(config).items()
        if not covers(without, key) and not (key in ADDED_LATER and value == ADDED_LATER[key])
    }
    return hash_of(kept)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration to {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def covers(keys: frozenset[str], key: str) -> bool:
    """Return whether a dotted key, or one above it, is in ``keys``."""
    return any(key == other or key.startswith(other + ".") for other in keys)


def write_config(folder: Path, config: dict[str, Any], digest: str) -> None:
    """Save the composed configuration as YAML, with its hash on the first line."""
    text = f"# sha256 {digest}\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the composed configuration of a run.

    Raises: UserError if the folder is not a run folder.
    """
    path = folder / CONFIG
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name that is too long
        raise UserError(f"{folder}: no such run folder")
    try:
        config = read_yaml(path)
    except FileNotFoundError:
        inner = sorted(child.parent.name for child in folder.glob(f"*/{CONFIG}"))
        hint = f"it is a sweep; name one of its runs: {', '.join(inner[:4])}" if inner else f"it has no {CONFIG}"
        raise UserError(f"{folder}: not a run folder: {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: not the YAML of a run: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a configuration")
    config.pop("repeat", None)  # a key of earlier releases
    return config


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json``; empty if there is none."""
    return read_object(folder / RUN)


def trained_arm(run: Path, arm: str | None) -> tuple[str, Path]:
    """Return the name and model folder of an arm of a finished run, by default of the candidate.

    Raises: UserError if the run or the arm does not exist, or the run is not finished.
    """
    if not os.path.isdir(run):
        raise UserError(f"run={run}: no such run folder")
    arms = sorted(path.parent.name for path in run.glob("arms/*/model"))
    if not arms:
        resume = f"resume={shlex.quote(str(run))}"
        raise UserError(f"run={run}: has no trained model; finish an interrupted run with {resume}")
    name = arm or str(read_run(run).get("candidate") or arms[0])
    if name not in arms:
        raise UserError(f"arm={name}: run {run} has no model of that arm; valid: {', '.join(arms)}")
    folder = run / "arms" / name / "model"
    for path in folder.rglob("*"):
        _check_kind(path, str(path.relative_to(run)))  # loading a pipe would block
    return name, folder


def announce(message: str) -> None:
    """Print one line to standard error."""
    print(one_line(redacted(message)), file=sys.stderr, flush=True)
