"""Jobs: the runs that a study needs, each named by a hash of what it computes, and the finished runs that match them.

A job's key is a hash of the resolved configuration, without keys that do not change the result (where texts are, how
the run is watched), and of the fingerprint of the tokens. So the same run is found in any folder, in another study and
among the published runs.
"""

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natattn.analysis.runs import (
    RunSummary,
    find_runs,
    read_facts,
    read_run_config,
    read_run_metrics,
    summarise_run,
)
from natattn.config.compose import compose, groups, parse, plain_values, quote_paths
from natattn.errors import UserError
from natattn.reproduce.study import CorpusSettings, Excerpt, Repeats
from natattn.storage.atomic import replacing
from natattn.training.build import open_task
from natattn.training.devices import chosen_device
from natattn.training.run_folder import config_hash
from natattn.training.settings import CHANGEABLE, RunSettings, compose_run, run_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Text and tokenizer are in the fingerprint; of the device only its kind counts, named or detected.
NOT_IN_KEY = CHANGEABLE | {"data", "tokenizer", "train.device"}
KEY_LENGTH = 16  # digits of the hash, in names of folders
ALWAYS = ("tracker=off", "train.max_seconds=null")  # the study watches its runs, and waits until they end
ENDED = ("finished", "diverged")  # a run that its time limit stopped is not finished


@dataclass(frozen=True)
class Job:
    """A run to make; ``overrides`` compose its configuration."""

    key: str
    overrides: tuple[str, ...]


def job_key(configuration: dict[str, Any], fingerprint: str, device: str) -> str:
    """Return the key of a resolved configuration on tokens of this fingerprint, on a device such as cpu or cuda:1."""
    part = config_hash(configuration, without=NOT_IN_KEY)
    return hashlib.sha256(f"{part} {fingerprint} {device.partition(':')[0]}".encode()).hexdigest()[:KEY_LENGTH]


class JobMaker:
    """Composes jobs from overrides.

    Args:
        folder: for the texts that studies cut or generate.
        wikitext: folder with the user's copy of WikiText-2; None if there is none.
    """

    def __init__(self, folder: Path, wikitext: str | None) -> None:
        self._texts, self._wikitext = folder / "texts", wikitext
        self._fingerprints: dict[str, str] = {}
        self._bases: dict[tuple[str, ...], str] = {}
        self._parsed: dict[str, tuple[str, Override]] = {}

    def job(self, corpus: CorpusSettings, overrides: Sequence[str]) -> Job | str:
        """Return the job; if its text was not given, only the key under which a finished run may exist.

        Raises: UserError for overrides that do not compose, or a text whose fingerprint is not the study's.
        """
        files = file_overrides(corpus, self._wikitext, self._texts)
        # Where a text is does not enter the key.
        complete = (
            *overrides,
            *ALWAYS,
            *([f"data.{key}=not_given" for key in corpus.files] if files is None else files),
        )
        settings = self.compose(complete)
        composed, device = settings.model_dump(mode="json"), str(chosen_device(settings.train.device))
        if files is None:
            return job_key(composed, corpus.fingerprint or "", device)
        data = json.dumps([composed[name] for name in ("data", "tokenizer", "packing")], sort_keys=True)
        if data not in self._fingerprints:
            self._fingerprints[data] = open_task(settings).fingerprint
        fingerprint = self._fingerprints[data]
        if corpus.fingerprint not in (None, fingerprint):
            raise UserError(
                f"wikitext={self._wikitext}: the text of {', '.join(files)} has the fingerprint {fingerprint[:12]}, "
                f"the study's has {str(corpus.fingerprint)[:12]}. Use the study's text, or leave wikitext out."
            )
        return Job(job_key(composed, fingerprint, device), complete)

    def compose(self, overrides: Sequence[str]) -> RunSettings:
        """Return what the overrides compose to, as ``natattn train`` would.

        Hydra takes 0.2 s for a composition and a study has hundreds of jobs. Therefore Hydra composes each choice of
        options (``optim=muon``) once, and the single values (``seed=3``) are set in a copy of the result.
        """
        from omegaconf import OmegaConf

        for text in overrides:
            if text not in self._parsed:
                (quoted,) = quote_paths([text])
                self._parsed[text] = quoted, parse([quoted])[0]
        parsed = [self._parsed[text] for text in overrides]
        chosen = tuple(text for text, override in parsed if override.key_or_group in groups())
        if chosen not in self._bases:
            base = OmegaConf.to_container(compose(chosen), resolve=False)
            assert isinstance(base, dict)
            sections = {str(key): base[key] for key in base if key not in ("hydra", "experiment")}
            self._bases[chosen] = json.dumps(sections)
        values = json.loads(self._bases[chosen])
        single = [override for _, override in parsed if override.key_or_group not in groups()]
        if not all(map(partial(_set, values), single)):
            return compose_run([text for text, _ in parsed])  # it also explains what is wrong
        text = json.dumps(values)
        if "${" in text or '"???"' in text:
            values = plain_values(OmegaConf.create(values))
        return run_settings(values)


def _set(values: dict[str, Any], override: "Override") -> bool:
    """Set a single value as Hydra would; False for an override that only Hydra can apply."""
    *sections, key = override.key_or_group.split(".")
    for section in sections:
        values = values.get(section)  # type: ignore[assignment]
        if not isinstance(values, dict):
            return False
    if override.package is not None or override.is_delete() or override.is_sweep_override():
        return False
    value = override.value()
    if isinstance(value, dict | list) or isinstance(values.get(key), dict | list):
        return False
    if key not in values and not override.is_force_add():
        return False
    values[key] = value
    return True


def file_overrides(corpus: CorpusSettings, wikitext: str | None, folder: Path) -> list[str] | None:
    """Return overrides that name the corpus's files; write those files to ``folder`` unless they exist.

    Returns None if a file needs the user's text and ``wikitext`` is None. Raises: UserError for an unreadable text.
    """
    overrides = []
    for key, source in corpus.files.items():
        if isinstance(source, Repeats):
            content = repeated_lines(source).encode()
            name = f"repeats_{source.lines}x{source.length}_{source.seed}.txt"
        elif wikitext is None:
            return None
        else:
            content, name = _excerpt(source, Path(os.path.expanduser(wikitext)))
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                raise UserError(f"{folder}: cannot be written to: {error.strerror}") from error
        overrides.append(f"data.{key}={path}")
    return overrides


@cache
def repeated_lines(settings: Repeats) -> str:
    """Return lines of random characters, each written twice: the first copy is unpredictable, the second certain."""
    draw = random.Random(settings.seed)
    lines = []
    for _ in range(settings.lines):
        # "#" to "z": printable ASCII without the space.
        word = "".join(chr(draw.randint(35, 122)) for _ in range(settings.length))
        lines.append(word + word + "\n")
    return "".join(lines)


def _excerpt(source: Excerpt, folder: Path) -> tuple[bytes, str]:
    """Return the beginning of a text, and a file name that states which part it is."""
    try:
        content = (folder / source.of).read_bytes()
    except OSError as error:
        raise UserError(f"wikitext={folder}: {source.of} cannot be read: {error.strerror}") from error
    suffix = ""
    if source.lines is not None:
        content = b"".join(content.splitlines(keepends=True)[: source.lines])
        suffix += f"_{source.lines}_lines"
    if source.bytes is not None:
        content = content[: source.bytes]
        suffix += f"_{source.bytes}_bytes"
    return content, f"{Path(source.of).stem}{suffix}.txt"


class DoneRuns:
    """Finished runs by job key.

    Args:
        folders: where to look, in order of precedence; folders and records without runs, or that are missing, are
            ignored.
        named: those of ``folders`` that the user named, which must hold runs.

    Raises: UserError for a folder in ``named`` without runs.
    """

    def __init__(self, folders: Iterable[Path | str], named: Collection[str] = ()) -> None:
        self._folders: dict[str, list[Path]] = defaultdict(list)
        self._summaries: dict[Path, RunSummary] = {}
        self._metrics: dict[Path, list[str]] = {}
        for folder in folders:
            try:
                runs = find_runs([folder])
            except UserError:
                if folder in named:
                    raise
                continue
            for run in runs:
                self.add(run)

    def add(self, run: Path) -> None:
        """Add a run if it has ended and can be read."""
        key = key_of(run)
        if key is not None and run not in self._folders[key]:
            self._folders[key].append(run)

    def find(self, key: str, metrics: Sequence[str] = (), *, with_model: bool = False) -> RunSummary | None:
        """Return the first run of this key that has all metrics (patterns) and, if asked for, its trained weights."""
        for folder in self._folders.get(key, ()):
            if with_model and not any(folder.glob("arms/*/model/*.safetensors")):
                continue
            if metrics and not self._has(folder, metrics):
                continue
            if folder not in self._summaries:
                self._summaries[folder] = summarise_run(folder)
            if self._summaries[folder].problem is None:
                return self._summaries[folder]
        return None

    def _has(self, folder: Path, patterns: Sequence[str]) -> bool:
        if folder not in self._metrics:
            try:
                self._metrics[folder] = read_run_metrics(folder).names()
            except UserError:
                self._metrics[folder] = []
        return all(any(fnmatchcase(name, pattern) for name in self._metrics[folder]) for pattern in patterns)


def key_of(run: Path) -> str | None:
    """Return the job key of a run; None if it has not ended or cannot be read."""
    try:
        facts = read_facts(run)
        if facts["status"] not in ENDED:
            return None
        return job_key(read_run_config(run), facts["data"]["fingerprint"], facts["device"])
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
